"""Asks a serving engine what a golden file asks the trainer's model. Light: no ML library.

The engine answers each golden prompt greedily and tells the log-probabilities of its tokens.
Where its answer leaves the golden one, it is asked again from there on, with the golden answer
so far as part of the prompt: all positions are compared after the same text, along the path that
serves requests. Not by ``prompt_logprobs``, which asks for all at once: with LoRA on, vLLM 0.32
computes those with the adapters of another batch, and ends when another request runs beside.
"""

import asyncio
import math
from dataclasses import dataclass
from typing import Any

import aiohttp

from maas.core.errors import EngineError, EngineUnreachable
from maas.finetune.receipt.records import TOP, Golden, GoldenAnswer, Row

# It may be busy with others' requests.
TIMEOUT_S = 300.0
# An engine that does not know a question answers one of these.
_UNKNOWN = frozenset({400, 404, 405, 422, 501})
_KEY = "token_id:"


@dataclass(frozen=True)
class EngineSays:
    """What an engine said.

    Attributes:
        rows: For each golden prompt a row for each token of its answer; none where the engine
            tells no log-probabilities.
        is_same: For each golden prompt, whether the engine's own greedy answer is the golden one;
            none where it answers none of them.
        same_rendering: Whether it renders each chat to the golden tokens; none: it does not tell.
    """

    rows: list[list[Row]] | None
    is_same: list[bool] | None
    same_rendering: bool | None


@dataclass(frozen=True)
class _Along:
    """What an engine says along one golden answer."""

    rows: list[Row]
    is_same: bool


def ask_engine(golden: Golden, *, url: str, model: str) -> EngineSays:
    """Ask an engine all of a golden file, all prompts at once: they go through it in one batch.

    Args:
        golden: What to ask.
        url: The engine's base URL.
        model: The engine's name of the tuned model.

    Raises:
        EngineUnreachable: It went away.
        EngineError: It failed at a question.
    """
    return asyncio.run(_ask(golden, url.rstrip("/"), model))


async def _ask(golden: Golden, url: str, model: str) -> EngineSays:
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
    async with aiohttp.ClientSession(timeout=timeout) as client:
        asker = _Asker(client, url, model)
        rendered = await asyncio.gather(*map(asker.is_rendered_alike, golden.answers))
        known = [alike for alike in rendered if alike is not None]
        same_rendering = all(known) if known else None
        along = await asyncio.gather(*map(asker.along, golden.answers))
        told = [said for said in along if said is not None]
        if len(told) == len(along):
            rows, is_same = [said.rows for said in told], [said.is_same for said in told]
            return EngineSays(rows, is_same, same_rendering)
        texts = await asyncio.gather(*map(asker.text, golden.answers))
        answered = [said for said in texts if said is not None]
        if len(answered) < len(texts):
            return EngineSays(None, None, same_rendering)
        pairs = zip(answered, golden.answers, strict=True)
        is_same = [said.strip() == answer.completion_text.strip() for said, answer in pairs]
        return EngineSays(None, is_same, same_rendering)


class _Asker:
    def __init__(self, client: aiohttp.ClientSession, url: str, model: str) -> None:
        self._client = client
        self._url = url
        self._model = model

    async def is_rendered_alike(self, answer: GoldenAnswer) -> bool | None:
        """Say whether the engine renders a chat to the golden tokens; none: it does not tell."""
        body = {"messages": answer.messages, "add_generation_prompt": True}
        said = await self._post("/tokenize", body)
        return None if said is None else said.get("tokens") == answer.prompt_ids

    async def along(self, answer: GoldenAnswer) -> _Along | None:
        """Return what the engine says along a golden answer; none where it does not tell."""
        golden = answer.completion_ids
        rows: list[Row] = []
        own: list[int] | None = None
        while len(rows) < len(golden):
            said = await self._continue([*answer.prompt_ids, *golden[: len(rows)]], golden, rows)
            if said is None:
                return None
            own = said if own is None else own
        return _Along(rows, is_same=own == golden)

    async def _continue(
        self, prompt: list[int], golden: list[int], rows: list[Row]
    ) -> list[int] | None:
        """Let the engine go on; add rows as far as it keeps to the golden answer.

        Returns:
            What it said; none where it does not tell it with log-probabilities.
        """
        body = {
            "prompt": prompt,
            "max_tokens": len(golden) - len(rows),
            "temperature": 0,
            # Whatever the weights' generation_config.json would have it be.
            "repetition_penalty": 1.0,
            "logprobs": TOP,
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
        }
        said = await self._post("/v1/completions", body)
        choice = {} if said is None else (said.get("choices") or [{}])[0]
        tokens, told = choice.get("token_ids"), choice.get("logprobs") or {}
        told_rows = told.get("top_logprobs")
        if not tokens or not told_rows or len(told_rows) < len(tokens):
            return None
        for token, row in zip(tokens, told_rows, strict=False):
            rows.append(_row(row))
            if token != golden[len(rows) - 1] or len(rows) == len(golden):
                break
        return tokens

    async def text(self, answer: GoldenAnswer) -> str | None:
        """Return the engine's own greedy answer to a chat; none where it gives none."""
        body = {
            "messages": answer.messages,
            "max_tokens": len(answer.completion_ids),
            "temperature": 0,
        }
        said = await self._post("/v1/chat/completions", body)
        choice = {} if said is None else (said.get("choices") or [{}])[0]
        return (choice.get("message") or {}).get("content")

    async def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any] | None:
        """Return an answer; none where the engine does not know the question."""
        try:
            async with self._client.post(
                f"{self._url}{path}", json={"model": self._model, **body}
            ) as response:
                if response.status in _UNKNOWN:
                    return None
                if response.status != 200:
                    raise EngineError(f"the engine answered {response.status} to {path}")
                said = await response.json()
                return said if isinstance(said, dict) else None
        except (aiohttp.ClientError, TimeoutError) as error:
            raise EngineUnreachable(f"the engine did not answer {path}: {error!r}") from error


def _row(said: dict[str, float | None] | None) -> Row:
    """Return a position's log-probabilities; what is no number stays so, and is found later."""
    row = {
        int(token.removeprefix(_KEY)): math.nan if value is None else float(value)
        for token, value in (said or {}).items()
    }
    return row or {0: math.nan}
