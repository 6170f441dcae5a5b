"""A fake engine's adapter and the means to look at its process tree."""

import asyncio
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import aiohttp
import psutil
import pytest

from maas.engines.contract import EngineSpec
from maas.engines.orphans import find_orphans, kill_orphans
from maas.engines.process import EngineProcess
from maas.engines.vllm import VllmEngine

TREE_ENGINE = Path(__file__).with_name("tree_engine.py")


class TreeEngine(VllmEngine):
    """Starts the stand-in instead of vLLM; everything else is vLLM's adapter."""

    name = "tree"

    def __init__(self, mode: str = "normal") -> None:
        self._mode = mode

    def command(self, spec: EngineSpec) -> list[str]:
        return [sys.executable, "-S", str(TREE_ENGINE), str(spec.port), self._mode]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def spec_on(port: int) -> EngineSpec:
    return EngineSpec(served_model_name="tree", model_dir=Path("none"), port=port)


def tree_of(pid: int) -> list[psutil.Process]:
    """The launcher, the server, its core and its worker."""
    root = psutil.Process(pid)
    return [root, *root.children(recursive=True)]


async def gone_within(home: Path, seconds: float) -> bool:
    """Say whether no process of this home is left before the time is up."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not await asyncio.to_thread(find_orphans, home):
            return True
        await asyncio.sleep(0.05)
    return False


Starter = Callable[..., Awaitable[EngineProcess]]


@pytest.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Starter]:
    """Start stand-in engines; whatever a test leaves behind is killed."""
    started: list[EngineProcess] = []

    async def starter(mode: str = "normal", replica_id: str = "r1", **more) -> EngineProcess:
        engine = EngineProcess(
            TreeEngine(mode),
            spec_on(free_port()),
            home=tmp_path,
            replica_id=replica_id,
            log_path=tmp_path / "logs" / f"{replica_id}.log",
            **more,
        )
        await engine.start()
        started.append(engine)
        return engine

    yield starter
    kill_orphans(tmp_path)
    for engine in started:
        await engine.stop(grace_s=0)
