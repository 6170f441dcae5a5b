"""Puts the platform in front of a running engine, through the command line others script too."""

import asyncio
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp

from benchmarks.gpu.engine import free_port
from benchmarks.gpu.load import Target
from maas.core.errors import Unavailable

_READY_TIMEOUT_S = 120.0
_STOP_TIMEOUT_S = 20.0
_POLL_S = 0.2
MAAS = (sys.executable, "-c", "from maas.cli.main import main; main()")


async def _maas(
    command: Sequence[str], environ: Mapping[str, str], *arguments: str
) -> dict[str, Any]:
    """Run one ``maas`` command and return the JSON it prints.

    Raises:
        Unavailable: It failed; the message is what it said.
    """
    process = await asyncio.create_subprocess_exec(
        *command,
        *arguments,
        "--json",
        env=dict(environ),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    if process.returncode != 0:
        said = (err or out).decode(errors="replace").strip()[-500:]
        raise Unavailable(f"maas {' '.join(arguments)} failed: {said}")
    return json.loads(out)


def _last_words(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace").strip()[-500:]


async def _until_answered(
    ask: Callable[[], AbstractAsyncContextManager[aiohttp.ClientResponse]],
    platform: asyncio.subprocess.Process,
    log: Path,
) -> None:
    """Ask again and again until the answer is a 200.

    Raises:
        Unavailable: The platform ended, or it took too long; the message has its last answer.
    """
    deadline, answer = time.monotonic() + _READY_TIMEOUT_S, "nothing"
    while time.monotonic() < deadline and platform.returncode is None:
        try:
            async with ask() as response:
                if response.status == 200:
                    return
                answer = f"{response.status}: {(await response.text())[:300]}"
        except aiohttp.ClientError as error:
            answer = str(error)
        await asyncio.sleep(_POLL_S)
    raise Unavailable(
        f"the platform did not become ready: it answered {answer} and said: {_last_words(log)}"
    )


async def _deploy(command: Sequence[str], environ: Mapping[str, str], engine: Target) -> Target:
    """Make the engine a deployment of the platform; return the platform as a target."""
    await _maas(
        *(command, environ, "deploy", "create", "--model", engine.models[0]),
        *("--engine", "external", "--url", engine.url),
    )
    made = await _maas(command, environ, "key", "create", "--name", "benchmark")
    url = f"http://127.0.0.1:{environ['MAAS_PORT']}"
    return replace(engine, name="platform", url=url, key=str(made["key"]))


async def _stop(platform: asyncio.subprocess.Process) -> None:
    if platform.returncode is None:
        platform.send_signal(signal.SIGINT)
        try:
            await asyncio.wait_for(platform.wait(), _STOP_TIMEOUT_S)
        except TimeoutError:
            platform.kill()
            await platform.wait()


@asynccontextmanager
async def platform_in_front(
    client: aiohttp.ClientSession, engine: Target, *, command: Sequence[str] = MAAS
) -> AsyncIterator[Target]:
    """Start the platform with the engine as its only, external, deployment; stop it after.

    Args:
        client: For the first requests.
        engine: What to put it in front of.
        command: The ``maas`` command line.

    Raises:
        Unavailable: It did not start, or does not serve the model.
    """
    with tempfile.TemporaryDirectory(prefix="maas-front-") as name:
        home, port = Path(name), free_port()
        environ = {k: v for k, v in os.environ.items() if not k.startswith("MAAS_")} | {
            "MAAS_HOME": str(home),
            "MAAS_PORT": str(port),
            "MAAS_METRICS_PORT": str(free_port()),
            "MAAS_MODEL": "none",
        }
        log = home / "up.log"
        with log.open("wb") as output:
            platform = await asyncio.create_subprocess_exec(
                *(*command, "up"),
                env=environ,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=asyncio.subprocess.STDOUT,
            )
        try:
            healthz = f"http://127.0.0.1:{port}/healthz"
            await _until_answered(lambda: client.get(healthz), platform, log)
            target = await _deploy(command, environ, engine)
            request = {"model": target.models[0], "prompt": [5], "max_tokens": 1}
            headers = {"Authorization": f"Bearer {target.key}"}
            completions = f"{target.url}/v1/completions"
            await _until_answered(
                lambda: client.post(completions, json=request, headers=headers), platform, log
            )
            yield target
        finally:
            await _stop(platform)
