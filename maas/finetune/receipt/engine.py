"""Asks a serving engine what a golden file asks the trainer's model. Light: no ML library."""

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp

from maas.core.errors import EngineError, EngineUnreachable
from maas.finetune.receipt.records import TOP, Golden, GoldenAnswer, Row

TIMEOUT_S = 120.0
# An engine that does not know a question answers one of these.
_UNKNOWN = frozenset({400, 404, 405, 422, 501})


@dataclass(frozen=True)
class EngineSays:
    """What an engine said.

    Attributes:
        rows: For each golden prompt its rows; none where the engine tells no log-probabilities.
        completions: For each golden prompt the engine's own greedy answer, as tokens or, where it
            tells none, as text; none where it answers no chat.
        same_rendering: Whether it renders each chat to the golden tokens; none: it does not tell.
    """

    rows: list[list[Row]] | None
    completions: list[list[int]] | list[str] | None
    same_rendering: bool | None


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
        rendered = await asyncio.gather(*map(asker.rendered, golden.answers))
        told = [answer for answer in rendered if answer is not None]
        return EngineSays(
            rows=await asker.all_rows(golden.answers),
            completions=await asker.all_completions(golden),
            same_rendering=all(told) if told else None,
        )


class _Asker:
    def __init__(self, client: aiohttp.ClientSession, url: str, model: str) -> None:
        self._client = client
        self._url = url
        self._model = model

    async def rendered(self, answer: GoldenAnswer) -> bool | None:
        """Say whether the engine renders a chat to the golden tokens."""
        body = {"messages": answer.messages, "add_generation_prompt": True}
        said = await self._post("/tokenize", body)
        return None if said is None else said.get("tokens") == answer.prompt_ids

    async def all_rows(self, answers: Sequence[GoldenAnswer]) -> list[list[Row]] | None:
        """Return what the engine says reading each prompt with its golden answer."""
        told = await asyncio.gather(*map(self._rows, answers))
        known = [rows for rows in told if rows is not None]
        return known if len(known) == len(told) else None

    async def _rows(self, answer: GoldenAnswer) -> list[Row] | None:
        body = {
            "prompt": answer.ids,
            "max_tokens": 1,
            "temperature": 0,
            "prompt_logprobs": TOP,
        }
        said = await self._post("/v1/completions", body)
        rows = None if said is None else _choice(said).get("prompt_logprobs")
        if not isinstance(rows, list) or len(rows) != len(answer.ids):
            return None
        return [_row(row) for row in rows[answer.first :]]

    async def all_completions(self, golden: Golden) -> list[list[int]] | list[str] | None:
        """Return the engine's own greedy answers."""
        tokens = await asyncio.gather(*map(self._tokens, golden.answers))
        known = [answer for answer in tokens if answer is not None]
        if len(known) == len(tokens):
            return known
        texts = await asyncio.gather(*map(self._text, golden.answers))
        said = [text for text in texts if text is not None]
        return said if len(said) == len(texts) else None

    async def _tokens(self, answer: GoldenAnswer) -> list[int] | None:
        body = {
            "prompt": answer.prompt_ids,
            "max_tokens": len(answer.completion_ids),
            "temperature": 0,
            # What the weights' generation_config.json would have them be.
            "repetition_penalty": 1.0,
            "return_token_ids": True,
        }
        said = await self._post("/v1/completions", body)
        return None if said is None else _choice(said).get("token_ids")

    async def _text(self, answer: GoldenAnswer) -> str | None:
        body = {
            "messages": answer.messages,
            "max_tokens": len(answer.completion_ids),
            "temperature": 0,
        }
        said = await self._post("/v1/chat/completions", body)
        return None if said is None else (_choice(said).get("message") or {}).get("content")

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


def _choice(said: dict[str, Any]) -> dict[str, Any]:
    return (said.get("choices") or [{}])[0]


def _row(said: dict[str, Any] | None) -> Row:
    """Return a position's log-probabilities; what is no number stays none and is found later."""
    row = {int(token): float(at["logprob"]) for token, at in (said or {}).items()}
    return row or {0: math.nan}
