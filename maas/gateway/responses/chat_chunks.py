"""What an engine's chat completion looks like, read leniently: engines differ.

Unknown fields are ignored and nearly everything may be missing or null; what is there must
have the right type. ``read_events`` cuts a byte stream into the data of its server-sent
events, whatever the borders of the chunks it comes in.
"""

from collections.abc import Iterator
from typing import Literal

import msgspec


class TokenLogprob(msgspec.Struct):
    """A token, how likely it was, and its UTF-8 bytes where the engine says them."""

    token: str
    logprob: float
    bytes: list[int] | None = None


class PositionLogprob(TokenLogprob):
    """The token chosen at a position, with its rivals."""

    top_logprobs: list[TokenLogprob] | None = None


class ChoiceLogprobs(msgspec.Struct):
    """Log probabilities of what a chunk added."""

    content: list[PositionLogprob] | None = None


class CalledFunction(msgspec.Struct):
    """Name and arguments, or a piece of them."""

    name: str | None = None
    arguments: str | None = None


class ToolCall(msgspec.Struct):
    """A tool call, or a piece of one; pieces of one call share their index."""

    index: int | None = None
    id: str | None = None
    function: CalledFunction | None = None


class ChatMessage(msgspec.Struct):
    """A message, or the piece of it that a chunk adds."""

    content: str | None = None
    refusal: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCall] | None = None


class Choice(msgspec.Struct):
    """One answer: whole (``message``) or a piece of it (``delta``)."""

    index: int = 0
    message: ChatMessage | None = None
    delta: ChatMessage | None = None
    logprobs: ChoiceLogprobs | None = None
    finish_reason: str | None = None


class PromptTokensDetails(msgspec.Struct):
    """Where the prompt's tokens came from."""

    cached_tokens: int | None = None


class CompletionTokensDetails(msgspec.Struct):
    """What the generated tokens were."""

    reasoning_tokens: int | None = None


class ChatUsage(msgspec.Struct):
    """Tokens read and written."""

    prompt_tokens: int = 0
    completion_tokens: int | None = None
    prompt_tokens_details: PromptTokensDetails | None = None
    completion_tokens_details: CompletionTokensDetails | None = None


class ChatFault(msgspec.Struct):
    """An error the engine or the relay reported inside the stream."""

    message: str = "the engine failed"
    code: str | int | None = None


class ChatPayload(msgspec.Struct):
    """A whole chat completion, or one chunk of a streamed one."""

    choices: list[Choice] | None = None
    usage: ChatUsage | None = None
    error: ChatFault | str | None = None


_decoder = msgspec.json.Decoder(ChatPayload)


def decode_payload(raw: bytes) -> ChatPayload:
    """Decode a completion or a chunk.

    Raises:
        msgspec.DecodeError: it is not JSON, or a field has the wrong type.
    """
    return _decoder.decode(raw)


DONE: Literal[b"[DONE]"] = b"[DONE]"
"""The data of the event that ends a chat stream."""


class EventReader:
    """Cuts a byte stream into the data of its server-sent events.

    Lines end in LF, CRLF or CR; an event may have several ``data`` lines; comments and
    other fields are passed over (https://html.spec.whatwg.org/multipage/server-sent-events.html).
    """

    def __init__(self) -> None:
        self._rest = bytearray()
        self._data: list[bytes] = []
        self._after_cr = False

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """Yield the data of every event that this chunk completes."""
        if self._after_cr and chunk:
            chunk = chunk.removeprefix(b"\n")
            self._after_cr = False
        self._rest += chunk
        if not chunk:
            return
        self._after_cr = self._rest.endswith(b"\r")
        *lines, rest = self._rest.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        self._rest = bytearray(rest)
        for line in lines:
            if line.startswith(b"data:"):
                self._data.append(bytes(line[5:]).removeprefix(b" "))
            elif not line and self._data:
                data, self._data = b"\n".join(self._data), []
                yield data
