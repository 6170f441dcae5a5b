"""Starts one engine the way the platform does and measures it through its own HTTP."""

import asyncio
import dataclasses
import json
import os
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp

from maas.engines.contract import EngineSpec
from maas.engines.process import EngineProcess
from maas.engines.vllm import VllmEngine

PROMPTS = (
    "What is the capital of France?",
    "Explain in one paragraph how rain forms.",
    "Write a short poem about the sea.",
    "List five fruits and their colours.",
    "What does a compiler do?",
    "Tell me a story about a fox and a crow.",
    "How do I boil an egg?",
    "What is the difference between a list and a tuple in Python?",
)


class TunedEngine(VllmEngine):
    """vLLM with variables set or removed, to measure what each one does."""

    def __init__(self, variables: Mapping[str, str | None]) -> None:
        self._variables = variables

    def environment(self, spec: EngineSpec) -> dict[str, str]:
        """Return the adapter's variables, changed."""
        environment = super().environment(spec)
        for name, value in self._variables.items():
            if value is None:
                environment.pop(name, None)
            else:
                environment[name] = value
        return environment


@dataclasses.dataclass(frozen=True)
class RunningEngine:
    """An engine that answers.

    Attributes:
        start_s: Seconds from the start of its process until it answered.
        memory_bytes: Resident memory of its tree.
    """

    url: str
    model: str
    client: aiohttp.ClientSession
    start_s: float
    memory_bytes: int
    log_path: Path


def spec_for(model_dir: Path, *, cache_dir: Path) -> EngineSpec:
    """Return the spec the benchmarks start from: every processor, 1 GiB of KV cache."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return EngineSpec(
        served_model_name="bench",
        model_dir=model_dir,
        port=port,
        cpu_ids=tuple(sorted(os.sched_getaffinity(0))),
        dtype="bfloat16",
        max_model_len=2048,
        max_num_seqs=32,
        kv_cache_bytes=2**30,
        cache_dir=cache_dir,
    )


@asynccontextmanager
async def running(
    spec: EngineSpec, *, variables: Mapping[str, str | None] | None = None
) -> AsyncIterator[RunningEngine]:
    """Start an engine, yield it when it answers, stop it."""
    with tempfile.TemporaryDirectory() as folder:
        home, log_path = Path(folder), Path(folder, "engine.log")
        engine = EngineProcess(
            TunedEngine(variables or {}), spec, home=home, replica_id="bench", log_path=log_path
        )
        async with aiohttp.ClientSession() as client:
            started = time.monotonic()
            await engine.start()
            try:
                await engine.wait_ready(client, timeout_s=280)
                start_s = time.monotonic() - started
                yield RunningEngine(
                    url=spec.url,
                    model=spec.served_model_name,
                    client=client,
                    start_s=start_s,
                    memory_bytes=engine.memory_bytes(),
                    log_path=log_path,
                )
            finally:
                await engine.stop(grace_s=5.0)


async def first_token_s(engine: RunningEngine) -> float:
    """Return the seconds from sending a chat to its first streamed token."""
    body = _chat(engine, PROMPTS[0], max_tokens=4) | {"stream": True}
    started = time.monotonic()
    async with engine.client.post(f"{engine.url}/v1/chat/completions", json=body) as response:
        response.raise_for_status()
        async for line in response.content:
            if line.startswith(b"data: {") and json.loads(line[6:])["choices"][0]["delta"].get(
                "content"
            ):
                break
    return time.monotonic() - started


async def tokens_per_s(engine: RunningEngine, *, batch: int, num_tokens: int = 64) -> float:
    """Return output tokens per second over all of ``batch`` streams at once."""
    prompts = [f"{PROMPTS[i % len(PROMPTS)]} ({i})" for i in range(batch)]
    started = time.monotonic()
    answers = await asyncio.gather(
        *(_complete(engine, prompt, num_tokens, ignore_eos=True) for prompt in prompts)
    )
    seconds = time.monotonic() - started
    return sum(answer["usage"]["completion_tokens"] for answer in answers) / seconds


@dataclasses.dataclass(frozen=True)
class Answer:
    """One greedy answer as token ids, with the prompt it answers."""

    prompt_ids: list[int]
    answer_ids: list[int]


async def greedy_answers(
    engine: RunningEngine, prompts: Sequence[str], *, num_tokens: int = 48
) -> list[Answer]:
    """Return the greedy answer to each prompt, computed one prompt at a time."""
    answers: list[Answer] = []
    for prompt in prompts:
        reply = await _complete(engine, prompt, num_tokens, return_token_ids=True)
        answers.append(Answer(reply["prompt_token_ids"], reply["choices"][0]["token_ids"]))
    return answers


async def likelihood(engine: RunningEngine, answers: Sequence[Answer]) -> tuple[float, float]:
    """Score given answers, token after token, each after its true predecessors.

    Returns:
        The share of tokens that are this engine's own first choice, and their mean negative
        log-likelihood in nats.
    """
    is_first: list[bool] = []
    nats: list[float] = []
    for answer in answers:
        ids = answer.prompt_ids + answer.answer_ids
        body = {"model": engine.model, "prompt": ids, "max_tokens": 1, "prompt_logprobs": 0}
        async with engine.client.post(f"{engine.url}/v1/completions", json=body) as response:
            response.raise_for_status()
            scored = (await response.json())["choices"][0]["prompt_logprobs"]
        for token_id, entry in list(zip(ids, scored, strict=True))[len(answer.prompt_ids) :]:
            is_first.append(entry[str(token_id)]["rank"] == 1)
            nats.append(-entry[str(token_id)]["logprob"])
    return sum(is_first) / len(is_first), sum(nats) / len(nats)


def _chat(engine: RunningEngine, prompt: str, *, max_tokens: int) -> dict[str, object]:
    return {
        "model": engine.model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": max_tokens,
        "temperature": 0,
    }


async def _complete(engine: RunningEngine, prompt: str, num_tokens: int, **fields: object):
    body = _chat(engine, prompt, max_tokens=num_tokens) | fields
    url = f"{engine.url}/v1/chat/completions"
    async with engine.client.post(url, json=body) as response:
        response.raise_for_status()
        return await response.json()
