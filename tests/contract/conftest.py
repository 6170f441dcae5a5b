"""The engines under test: each is started once a session, by the first test that asks for it."""

import json
import shutil
import socket
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio

from maas.edge.export.form import prepare_form
from maas.engines.contract import EngineAdapter, EngineCapabilities, EngineSpec
from maas.engines.external import ExternalEngine, declared, resolve_model
from maas.engines.process import EngineProcess
from maas.engines.registry import get_engine
from maas.engines.vllm import VllmEngine

START_TIMEOUT_S = 240


class FakeAdapter(VllmEngine):
    """Starts the fake engine; it is read the way vLLM is."""

    name = "fake"

    def command(self, spec: EngineSpec) -> list[str]:
        script = Path(__file__).with_name("fake_engine.py")
        return [sys.executable, str(script), str(spec.port), spec.served_model_name]


@dataclass(frozen=True)
class Served:
    """One engine that answers."""

    adapter: EngineAdapter
    url: str
    model: str
    client: aiohttp.ClientSession
    model_dir: Path
    engine: EngineProcess | None

    @property
    def can(self) -> EngineCapabilities:
        return self.adapter.capabilities

    async def post(self, path: str, **body: object) -> tuple[int, dict]:
        async with self.client.post(f"{self.url}{path}", json={"model": self.model} | body) as r:
            text = await r.text()
            return r.status, json.loads(text) if text.startswith("{") else {"text": text}

    async def chat(self, content: str, **body: object) -> dict:
        messages = [{"role": "user", "content": content}]
        body = {"max_tokens": 16, "temperature": 0, "messages": messages} | body
        status, answer = await self.post("/v1/chat/completions", **body)
        assert status == 200, answer
        return answer


def spec_for(model_dir: Path) -> EngineSpec:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return EngineSpec(
        served_model_name="under-test",
        model_dir=model_dir,
        port=port,
        dtype="bfloat16",
        max_model_len=2048,
        max_num_seqs=8,
        kv_cache_bytes=2**28,
        cache_dir=model_dir.parent / "engine-cache",
    )


class EnginePool:
    """Starts engines when they are first wanted, keeps them, stops them all."""

    def __init__(self, client: aiohttp.ClientSession, home: Path, smollm2: Path | None) -> None:
        self._client = client
        self.home = home
        self._smollm2 = smollm2
        self._served: dict[str, Served] = {}

    async def start(self, name: str, adapter: EngineAdapter, spec: EngineSpec) -> Served:
        log_path = self.home / f"{name}.log"
        engine = EngineProcess(adapter, spec, home=self.home, replica_id=name, log_path=log_path)
        await engine.start()
        model = adapter.engine_model(spec)
        self._served[name] = Served(adapter, spec.url, model, self._client, spec.model_dir, engine)
        await engine.wait_ready(self._client, timeout_s=START_TIMEOUT_S)
        return self._served[name]

    async def get(self, name: str) -> Served:
        if name in self._served:
            return self._served[name]
        if name == "fake":
            return await self.start(name, FakeAdapter(), spec_for(self.home))
        assert self._smollm2
        if name == "vllm":
            spec = replace(
                spec_for(self._smollm2), max_loras=2, max_lora_rank=8, tool_call_parser="hermes"
            )
            return await self.start(name, get_engine("vllm"), spec)
        if name == "onnx":
            folder = prepare_form(self._smollm2, self._smollm2.parent / "onnx")
            spec = replace(spec_for(folder), tool_call_parser="hermes", max_model_len=2048)
            served = await self.start(name, get_engine("onnx"), spec)
            # What adapters are made for; the engine reads a form of it.
            self._served[name] = replace(served, model_dir=self._smollm2)
            return self._served[name]
        if name == "transformers":
            return await self.start(
                name, get_engine("transformers"), spec_for(self._sampling_weights())
            )
        return await self._external()

    async def _external(self) -> Served:
        vllm = await self.get("vllm")
        adapter = ExternalEngine(declared({"abort_on_disconnect": True, "cache_salt": True}))
        model = await resolve_model(self._client, vllm.url, wanted="under-test")
        return replace(vllm, adapter=adapter, model=model, engine=None)

    def _sampling_weights(self) -> Path:
        """SmolLM2 with sampling on: this engine samples only where the weights say so."""
        assert self._smollm2
        target = self.home / "sampling"
        shutil.copytree(self._smollm2, target)
        path = target / "generation_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"do_sample": True}))
        return target

    async def stop(self, name: str | None = None) -> None:
        for key in [name] if name else list(self._served):
            served = self._served.pop(key)
            if served.engine:
                await served.engine.stop(grace_s=5)


@pytest.fixture(scope="session")
def smollm2_dir_if_wanted(request: pytest.FixtureRequest) -> Path | None:
    """The real weights, unless only the fake engine is tested."""
    if any(item.get_closest_marker("engine") for item in request.session.items):
        return request.getfixturevalue("smollm2_dir")
    return None


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def pool(
    tmp_path_factory: pytest.TempPathFactory, smollm2_dir_if_wanted: Path | None
) -> AsyncIterator[EnginePool]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=240)) as client:
        pool = EnginePool(client, tmp_path_factory.mktemp("engines"), smollm2_dir_if_wanted)
        try:
            yield pool
        finally:
            await pool.stop()


def _real(name: str):
    return pytest.param(name, marks=pytest.mark.engine)


@pytest_asyncio.fixture(
    loop_scope="session",
    params=[
        "fake",
        _real("vllm"),
        _real("onnx"),
        _real("external"),
        _real("transformers"),
    ],
)
async def served(request: pytest.FixtureRequest, pool: EnginePool) -> Served:
    return await pool.get(request.param)
