"""Compares what the trainer, the merged weights and the serving engine say. Light: no ML library.

Logits are compared as log-probabilities: they differ from logits by one number a position (the
log of the sum of all exponentials), so equal logits are equal log-probabilities, and a difference
of ``d`` in a logit moves its log-probability by at most ``d``.
"""

import asyncio
import json
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import aiohttp
from pydantic import BaseModel, ConfigDict

from maas.core.errors import EngineError, EngineUnreachable

ASKED_TOP = 20
TIMEOUT_S = 120.0
# Kernels sum in different orders; docs/benchmarks.md has what was measured. A wrong scale, a
# missing module or another template is far beyond both.
MIN_AGREEMENT = {"float32": 0.98, "bfloat16": 0.90, "float16": 0.90}
MAX_DIFFERENCE = {"float32": 0.1, "bfloat16": 1.0, "float16": 1.0}
# Differences of what is next to impossible say nothing.
_LIKELY = -8.0


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Leg(_Part):
    """One comparison with the trainer's model.

    Attributes:
        status: ``not_measured`` has a reason.
        greedy_agreement: Share of positions where the likeliest token is the same.
        max_logprob_difference: Of the tokens both name, those next to impossible left out.
    """

    status: Literal["measured", "not_measured"]
    why: str | None = None
    num_positions: int = 0
    greedy_agreement: float | None = None
    max_logprob_difference: float | None = None


class Receipt(_Part):
    """The verdict and what it rests on."""

    verdict: Literal["passed", "failed"]
    reasons: tuple[str, ...]
    dtype: str
    num_prompts: int
    merged: Leg
    engine: Leg
    template_sha256: str
    tokenizer_sha256: str
    same_rendering: bool | None
    min_greedy_agreement: float
    max_logprob_difference: float
    measured_at: float


def measure(golden_file: Path, *, engine_url: str | None, engine_model: str | None) -> Receipt:
    """Return the receipt of a golden file.

    Args:
        golden_file: What the trainer wrote.
        engine_url: Base URL of an engine that has the adapter; none where no engine serves the
            base.
        engine_model: The engine's name of the adapter.

    Raises:
        EngineUnreachable: The engine went away.
    """
    golden = json.loads(golden_file.read_text(encoding="utf-8"))
    prompts: list[dict[str, Any]] = golden["prompts"]
    merged = _leg((p["trainer"], p["merged"]) for p in prompts)
    if engine_url is None or engine_model is None:
        engine = Leg(status="not_measured", why="no engine serves the base")
        same_rendering = None
    else:
        answers, same_rendering = asyncio.run(_ask(engine_url, engine_model, prompts))
        if answers is None:
            engine = Leg(status="not_measured", why="the engine gives no prompt_logprobs")
        else:
            pairs = zip((p["trainer"] for p in prompts), answers, strict=True)
            engine = _leg(pairs)
    return _judge(golden, merged, engine, same_rendering)


def _judge(
    golden: Mapping[str, Any], merged: Leg, engine: Leg, same_rendering: bool | None
) -> Receipt:
    dtype = str(golden["dtype"])
    low, high = MIN_AGREEMENT[dtype], MAX_DIFFERENCE[dtype]
    reasons: list[str] = []
    for name, leg in (("merged weights", merged), ("engine", engine)):
        if leg.greedy_agreement is not None and leg.greedy_agreement < low:
            reasons.append(f"{name}: {leg.greedy_agreement:.3f} of tokens agree, want {low}")
        if leg.max_logprob_difference is not None and leg.max_logprob_difference > high:
            reasons.append(
                f"{name}: log-probabilities differ by {leg.max_logprob_difference:.3f}, "
                f"want at most {high}"
            )
    if same_rendering is False:
        reasons.append("the engine renders the golden chats to other tokens than training did")
    return Receipt(
        verdict="failed" if reasons else "passed",
        reasons=tuple(reasons),
        dtype=dtype,
        num_prompts=len(golden["prompts"]),
        merged=merged,
        engine=engine,
        template_sha256=golden["template_sha256"],
        tokenizer_sha256=golden["tokenizer_sha256"],
        same_rendering=same_rendering,
        min_greedy_agreement=low,
        max_logprob_difference=high,
        measured_at=time.time(),
    )


Positions = list[dict[str, float]]


def _leg(pairs: Iterable[tuple[Positions, Positions]]) -> Leg:
    num_positions, num_agreeing, worst = 0, 0, 0.0
    for ours, theirs in pairs:
        for here, there in zip(ours, theirs, strict=True):
            num_positions += 1
            num_agreeing += max(here, key=lambda t: here[t]) == max(there, key=lambda t: there[t])
            known = [token for token in here if token in there and here[token] > _LIKELY]
            worst = max([worst, *(abs(here[token] - there[token]) for token in known)])
    return Leg(
        status="measured",
        num_positions=num_positions,
        greedy_agreement=num_agreeing / max(num_positions, 1),
        max_logprob_difference=round(worst, 6),
    )


async def _ask(
    url: str, model: str, prompts: list[dict[str, Any]]
) -> tuple[list[Positions] | None, bool | None]:
    """Return the engine's log-probabilities along each answer, and whether it renders alike."""
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
    async with aiohttp.ClientSession(timeout=timeout) as client:
        answers: list[Positions] = []
        is_same: bool | None = None
        for prompt in prompts:
            rendered = await _post(
                client, f"{url}/tokenize", {"model": model, "messages": prompt["messages"]}
            )
            if rendered is not None:
                is_same = is_same is not False and rendered["tokens"] == prompt["prompt_ids"]
            body = {
                "model": model,
                "prompt": [*prompt["prompt_ids"], *prompt["completion_ids"]],
                "max_tokens": 1,
                "temperature": 0,
                "prompt_logprobs": ASKED_TOP,
            }
            answer = await _post(client, f"{url}/v1/completions", body)
            said = None if answer is None else answer["choices"][0].get("prompt_logprobs")
            if said is None:
                return None, is_same
            along = said[len(prompt["prompt_ids"]) :]
            answers.append(
                [{token: float(at["logprob"]) for token, at in row.items()} for row in along]
            )
        return answers, is_same


async def _post(
    client: aiohttp.ClientSession, url: str, body: dict[str, Any]
) -> dict[str, Any] | None:
    """Return an answer; none where the engine does not know the question."""
    try:
        async with client.post(url, json=body) as response:
            if response.status in {400, 404, 405, 422}:
                return None
            if response.status != 200:
                raise EngineError(f"the engine answered {response.status} to {url}")
            return await response.json()
    except (aiohttp.ClientError, TimeoutError) as error:
        raise EngineUnreachable(f"the engine did not answer: {error}") from error
