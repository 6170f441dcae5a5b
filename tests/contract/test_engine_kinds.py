"""Engines started for one purpose: embeddings, architectures vLLM lacks, a killed vLLM."""

import asyncio
import importlib.util
import operator
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from maas.catalog.catalog import load_catalog
from maas.core.errors import EngineStartFailed
from maas.engines.orphans import find_orphans, kill_orphans
from maas.engines.process import EngineProcess
from maas.engines.registry import get_engine
from tests.conftest import REPOSITORY

from .conftest import spec_for
from .small_weights import write_awq, write_codegen

pytestmark = [
    pytest.mark.engine,
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.timeout(300),
]


async def test_vllm_embeds_with_minilm_and_knows_what_is_alike(pool, minilm_dir):
    spec = replace(spec_for(minilm_dir), task="embed", dtype="float32", max_model_len=256)
    served = await pool.start("embed", get_engine("vllm"), spec)
    texts = ["A man is eating food.", "Somebody has a meal.", "The stock market fell today."]
    try:
        status, answer = await served.post("/v1/embeddings", input=texts)
        assert status == 200, answer
        man, meal, market = (item["embedding"] for item in answer["data"])
        assert len(man) == 384
        # Of length 1, so the product is the cosine.
        assert sum(x * x for x in man) == pytest.approx(1, abs=1e-3)
        alike, apart = (sum(map(operator.mul, man, other)) for other in (meal, market))
        assert alike > 0.5 > 0.2 > apart
        assert answer["usage"]["prompt_tokens"] > 0
        status, _ = await served.post("/v1/completions", prompt="rain")
        assert status >= 400
    finally:
        await pool.stop("embed")


async def test_vllm_serves_gemma_as_the_card_says(pool, gemma_dir):
    # float32, as the platform computes models of this size on a CPU (ADR 5).
    spec = replace(spec_for(gemma_dir), dtype="float32", max_model_len=512, max_num_seqs=2)
    served = await pool.start("gemma", get_engine("vllm"), spec)
    try:
        # A base model: it continues text and knows no chat.
        status, answer = await served.post(
            "/v1/completions", prompt="1, 2, 3, 4, 5,", max_tokens=8, temperature=0
        )
        assert status == 200, answer
        assert "6, 7" in answer["choices"][0]["text"]
        status, answer = await served.post(
            "/v1/chat/completions", messages=[{"role": "user", "content": "hello"}]
        )
        assert status == 400, answer
    finally:
        await pool.stop("gemma")


async def test_vllm_serves_weights_that_come_quantised(pool, smollm2_dir, tmp_path):
    # As a variant with its own source is started: no flag, the weights' config says what they are.
    spec = replace(spec_for(write_awq(tmp_path / "awq", smollm2_dir)), max_model_len=256)
    served = await pool.start("awq", get_engine("vllm"), spec)
    try:
        answer = await served.chat("What is the capital of France?", max_tokens=24)
        assert "Paris" in answer["choices"][0]["message"]["content"]
        assert "awq" in (pool.home / "awq.log").read_text().lower()
    finally:
        await pool.stop("awq")


async def test_parsers_that_cards_name_are_vllms():
    # No shipped test starts the large models, so a name that vLLM drops would show up nowhere else.
    found = importlib.util.find_spec("vllm")
    assert found
    assert found.origin
    folder = Path(found.origin).parent
    tools = (folder / "tool_parsers" / "__init__.py").read_text()
    reasoning = (folder / "reasoning" / "__init__.py").read_text()
    cards = load_catalog(REPOSITORY / "models").values()
    named = {(tools, card.tool_call_parser) for card in cards}
    named |= {(reasoning, card.reasoning_parser) for card in cards}
    unknown = {name for text, name in named if name and f'"{name}": (' not in text}
    assert unknown == set()
    assert any(name for _, name in named)


async def test_transformers_serves_an_architecture_vllm_lacks(pool, tmp_path):
    spec = replace(spec_for(write_codegen(tmp_path / "codegen")), dtype="float32")
    served = await pool.start("codegen", get_engine("transformers"), spec)
    try:
        status, answer = await served.post(
            "/v1/completions", prompt="the rain falls on the", max_tokens=4, temperature=0
        )
        assert status == 200, answer
        assert answer["usage"]["completion_tokens"] > 0
    finally:
        await pool.stop("codegen")


async def test_vllm_says_why_it_cannot_start(pool, tmp_path):
    spec = spec_for(write_codegen(tmp_path / "codegen"))
    started = time.monotonic()
    with pytest.raises(EngineStartFailed, match="CodeGen"):
        await pool.start("broken", get_engine("vllm"), spec)
    assert time.monotonic() - started < 120
    await pool.stop("broken")


@pytest.mark.parametrize(
    "victim",
    [
        pytest.param("launcher.py", marks=pytest.mark.slow),
        pytest.param("api_server", marks=pytest.mark.slow),
        "EngineCore",
    ],
)
async def test_killing_any_vllm_process_leaves_none(pool, smollm2_dir, tmp_path, victim):
    engine = EngineProcess(
        get_engine("vllm"),
        spec_for(smollm2_dir),
        home=tmp_path,
        replica_id="r",
        log_path=tmp_path / "engine.log",
    )
    await engine.start()
    try:
        core = await _process(tmp_path, "EngineCore", seconds=60)
        assert core.is_running()
        (await _process(tmp_path, victim, seconds=5)).kill()
        assert await _none_left(tmp_path, seconds=15), find_orphans(tmp_path)
        assert not engine.is_alive
    finally:
        kill_orphans(tmp_path)
        await engine.stop(grace_s=0)


async def _process(home, name: str, *, seconds: float) -> psutil.Process:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        for process in find_orphans(home):
            # The launcher's command line holds the server's too, so the more telling name wins.
            try:
                line = " ".join(process.cmdline())
            except psutil.NoSuchProcess:  # vLLM runs short helpers while it starts
                continue
            if name in line and (name == "launcher.py" or "launcher.py" not in line):
                return process
        await asyncio.sleep(0.1)
    raise AssertionError(f"no process {name}")


async def _none_left(home, *, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not find_orphans(home):
            return True
        await asyncio.sleep(0.1)
    return False
