"""Answers as OpenAI's API writes them, whole and in chunks."""

import base64
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from maas.core.ids import new_id
from maas.edge.runtime.engine.contract import Output, TokenLogprob
from maas.edge.runtime.server.calls import Call, CallReader
from maas.edge.runtime.server.requests import Asked
from maas.edge.runtime.server.text import TextStream
from maas.edge.runtime.server.tools import read_calls

Logprobs = Sequence[dict[str, Any]]


@dataclass
class Choice:
    """One answer as it grows.

    Attributes:
        offsets: Where in the text the token of each of ``logprobs`` begins.
    """

    stream: TextStream
    text: str = ""
    num_tokens: int = 0
    logprobs: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    offsets: list[int] = field(default_factory=list[int])
    finish_reason: str | None = None
    error: str | None = None
    token_ids: list[int] = field(default_factory=list[int])
    calls: CallReader = field(default_factory=CallReader)


class Answer:
    """All choices of one request.

    Args:
        asked: The request.
        tokenizer: The model's.
        is_chat: Whether it is a chat.
    """

    def __init__(self, asked: Asked, tokenizer: Tokenizer, *, is_chat: bool) -> None:
        self._asked = asked
        self._tokenizer = tokenizer
        self._is_chat = is_chat
        self._id = new_id("chatcmpl" if is_chat else "cmpl")
        self._created = int(time.time())
        self._num_cached = 0
        self.choices = [Choice(TextStream(tokenizer, asked.stops)) for _ in asked.choices]

    @property
    def is_over(self) -> bool:
        """Whether every choice has its end."""
        return all(choice.finish_reason for choice in self.choices)

    def take(self, index: int, output: Output) -> str:
        """Add what the engine gave; return the text that can be shown of it."""
        choice = self.choices[index]
        if choice.finish_reason:
            return ""
        text = choice.stream.push(output.token_ids)
        choice.num_tokens += len(output.token_ids)
        self._num_cached = max(self._num_cached, output.num_cached_tokens)
        for token, logprob in zip(output.token_ids, output.logprobs or (), strict=False):
            choice.logprobs.append(self._logprob(token, logprob))
        if output.logprobs:
            choice.offsets += choice.stream.offsets[-len(output.token_ids) :]
        if self._asked.wants_ids:
            choice.token_ids += output.token_ids
            if output.end_token_id is not None:
                choice.token_ids.append(output.end_token_id)
            if output.end_token_id is not None and output.end_logprob is not None:
                choice.logprobs.append(self._logprob(output.end_token_id, output.end_logprob))
                choice.offsets.append(choice.stream.num_chars)
        if choice.stream.is_stopped:
            choice.finish_reason = "stop"
        elif output.finish_reason is not None:
            text += choice.stream.flush()
            choice.finish_reason = output.finish_reason
            choice.error = output.error
        choice.text += text
        return text

    def first_chunk(self, index: int) -> dict[str, Any]:
        """Return the chunk that says whose turn it is; chats begin with it."""
        return self._chunk(index, {"role": "assistant", "content": ""}, None, None)

    def chunks(self, index: int, text: str, logprobs: Logprobs) -> list[dict[str, Any]]:
        """Return the chunks that tell of new text, and of the tokens it is of."""
        mode = self._asked.tools.mode
        if mode == "forced":
            # It is read when it is whole.
            return []
        pieces = self.choices[index].calls.push(text) if mode == "auto" else [text] if text else []
        return self._piece_chunks(index, pieces, logprobs)

    def end_chunks(self, index: int) -> list[dict[str, Any]]:
        """Return the chunks a choice ends with."""
        choice, plan = self.choices[index], self._asked.tools
        if not self._is_chat:
            return [self._plain_chunk(index, "", choice.finish_reason, [])]
        chunks: list[dict[str, Any]] = []
        has_calls = False
        if plan.mode == "auto":
            chunks = self._piece_chunks(index, choice.calls.finish(), [])
            has_calls = choice.calls.num_calls > 0
        elif plan.mode == "forced":
            content, calls = read_calls(choice.text, plan)
            if content:
                chunks.append(self._chunk(index, {"content": content}, None, choice.logprobs))
            chunks += [self._call_chunk(index, place, call) for place, call in enumerate(calls)]
            has_calls = bool(calls)
        reason = _reason(choice.finish_reason, has_calls)
        return [*chunks, self._chunk(index, {}, reason, None)]

    def _piece_chunks(
        self, index: int, pieces: Sequence[str | Call], logprobs: Logprobs
    ) -> list[dict[str, Any]]:
        """Return a chunk for each text and each call; the first text has the tokens."""
        num_calls = sum(not isinstance(piece, str) for piece in pieces)
        place = self.choices[index].calls.num_calls - num_calls
        if logprobs and num_calls == len(pieces):
            pieces = ["", *pieces]
        chunks: list[dict[str, Any]] = []
        for piece in pieces:
            if isinstance(piece, str):
                chunks.append(self._text_chunk(index, piece, logprobs))
                logprobs = []
            else:
                chunks.append(self._call_chunk(index, place, piece))
                place += 1
        return chunks

    def _text_chunk(self, index: int, text: str, logprobs: Logprobs) -> dict[str, Any]:
        if not self._is_chat:
            return self._plain_chunk(index, text, None, logprobs)
        return self._chunk(index, {"content": text}, None, logprobs)

    def _call_chunk(self, index: int, place: int, call: Call) -> dict[str, Any]:
        return self._chunk(index, {"tool_calls": [{"index": place, **call}]}, None, None)

    def usage_chunk(self) -> dict[str, Any]:
        """Return the chunk that has the usage and no choices."""
        name = "chat.completion.chunk" if self._is_chat else "text_completion"
        return {**self._head(name), "choices": [], "usage": self.usage()}

    def whole(self) -> dict[str, Any]:
        """Return the whole answer."""
        name = "chat.completion" if self._is_chat else "text_completion"
        make = self._chat_choice if self._is_chat else self._plain_choice
        choices = [make(index) for index in range(len(self.choices))]
        return {**self._head(name), "choices": choices, "usage": self.usage()}

    def usage(self) -> dict[str, Any]:
        """Return what was used."""
        num_prompt = sum(map(len, self._asked.prompts))
        num_new = sum(choice.num_tokens for choice in self.choices)
        return {
            "prompt_tokens": num_prompt,
            "completion_tokens": num_new,
            "total_tokens": num_prompt + num_new,
            "prompt_tokens_details": {"cached_tokens": self._num_cached},
        }

    def _head(self, name: str) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": name,
            "created": self._created,
            "model": self._asked.model,
        }

    def _chunk(
        self,
        index: int,
        delta: dict[str, Any],
        reason: str | None,
        logprobs: Logprobs | None,
    ) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": index, "delta": delta, "finish_reason": reason}
        choice["logprobs"] = {"content": logprobs, "refusal": None} if logprobs else None
        return {**self._head("chat.completion.chunk"), "choices": [choice]}

    def _plain_chunk(
        self, index: int, text: str, reason: str | None, logprobs: Logprobs
    ) -> dict[str, Any]:
        choice = {"index": index, "text": text, "finish_reason": reason}
        choice["logprobs"] = self._columns(index, logprobs)
        return {**self._head("text_completion"), "choices": [choice]}

    def _chat_choice(self, index: int) -> dict[str, Any]:
        choice = self.choices[index]
        content, calls = read_calls(choice.text, self._asked.tools)
        message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
        if calls:
            message["tool_calls"] = calls
        logprobs = {"content": choice.logprobs, "refusal": None} if choice.logprobs else None
        reason = _reason(choice.finish_reason, bool(calls))
        return {"index": index, "message": message, "finish_reason": reason, "logprobs": logprobs}

    def _plain_choice(self, index: int) -> dict[str, Any]:
        choice = self.choices[index]
        logprobs = self._columns(index, choice.logprobs)
        ids = {"token_ids": choice.token_ids} if self._asked.wants_ids else {}
        return {
            "index": index,
            "text": choice.text,
            "finish_reason": choice.finish_reason,
            "logprobs": logprobs,
            **ids,
        }

    def _columns(self, index: int, logprobs: Logprobs) -> dict[str, Any] | None:
        """Return the last log probabilities of a choice in the older form of completions."""
        if not logprobs:
            return None
        return {
            "tokens": [item["token"] for item in logprobs],
            "token_logprobs": [item["logprob"] for item in logprobs],
            "top_logprobs": [
                {top["token"]: top["logprob"] for top in item["top_logprobs"]} for item in logprobs
            ],
            "text_offset": self.choices[index].offsets[-len(logprobs) :],
        }

    def _logprob(self, token: int, logprob: TokenLogprob) -> dict[str, Any]:
        top = [self._token(other, value) for other, value in logprob.top]
        return {**self._token(token, logprob.logprob), "top_logprobs": top}

    def _token(self, token: int, logprob: float) -> dict[str, Any]:
        text = self._tokenizer.decode([token], skip_special_tokens=False)
        if self._asked.wants_ids:
            text = f"token_id:{token}"
        # JSON has no infinities: a token that the model gives no chance at all.
        return {"token": text, "logprob": max(logprob, -9999.0), "bytes": list(text.encode())}


def embedding_list(
    vectors: NDArray[np.float32], model: str, *, num_tokens: int, is_base64: bool
) -> dict[str, Any]:
    """Return embeddings, as numbers or as base64 of little-endian float32."""
    data = [
        {
            "object": "embedding",
            "index": index,
            "embedding": base64.b64encode(vector.astype("<f4").tobytes()).decode()
            if is_base64
            else [float(value) for value in vector],
        }
        for index, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": num_tokens, "total_tokens": num_tokens}
    return {"object": "list", "data": data, "model": model, "usage": usage}


def _reason(reason: str | None, has_calls: bool) -> str | None:
    return "tool_calls" if has_calls and reason == "stop" else reason
