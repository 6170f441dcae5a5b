"""An engine's event stream, made ours on the way: no JSON is parsed but for the usage event.

Complete events pass as the bytes they came in. Taken out: the usage event nobody asked for
(the engine is always told to send it) and the engine's own errors. Replaced, only where the
names differ: the engine's name of the model.
"""

import re
from dataclasses import dataclass, field
from typing import Annotated

import msgspec

from maas.protocol.sse import DONE_EVENT, EVENT_END, data_of

_COMPLETION = b'data: {"id":'
_FRAMED_END = EVENT_END + b"\r\n"
_USAGE = re.compile(rb'"usage":\s*\{')
_FINISH = re.compile(rb'"finish_reason":\s*"')
_ERROR = re.compile(rb'data: ?\{\s*"error"')


# What is no count (negative, or beyond any context) is no usage either.
_Count = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]


class PromptTokensDetails(msgspec.Struct):
    """Where prompt tokens came from."""

    cached_tokens: _Count | None = None


class Usage(msgspec.Struct):
    """Token counts as engines report them."""

    prompt_tokens: _Count = 0
    completion_tokens: _Count | None = 0
    total_tokens: int = 0
    prompt_tokens_details: PromptTokensDetails | None = None


class _UsageEvent(msgspec.Struct):
    usage: Usage | None = None
    choices: list[msgspec.Raw] | None = None


_usage_decoder = msgspec.json.Decoder(_UsageEvent)


def usage_of(body: bytes) -> Usage | None:
    """Return the usage in a JSON body, if it has one."""
    try:
        return _usage_decoder.decode(body).usage
    except msgspec.DecodeError:
        return None


@dataclass(slots=True)
class StreamFilter:
    """Feeds on chunks of any size and gives back what the client should see.

    Attributes:
        wants_usage: Whether the client asked for the usage event.
        rename: The engine's ``"model":"..."`` and ours, where they differ.
        ends_with_done: Whether this engine says ``[DONE]``; otherwise a finish reason ends it.
        usage: The last usage seen.
        num_events: Events passed on; near the number of tokens.
        is_complete: Whether the engine said that it was done.
        has_failed: Whether the engine reported an error.
    """

    wants_usage: bool
    rename: tuple[bytes, bytes] | None = None
    ends_with_done: bool = True
    usage: Usage | None = None
    num_events: int = 0
    is_complete: bool = False
    has_failed: bool = False
    _rest: bytes = b""
    _takes_framed: bool = field(init=False)

    def __post_init__(self) -> None:
        """Work out once whether any chunk may pass unread."""
        self._takes_framed = self.rename is None and self.ends_with_done

    def feed(self, chunk: bytes) -> bytes:
        """Take a chunk; return whole events for the client, maybe none."""
        if self._rest:
            chunk = self._rest + chunk
            self._rest = b""
        if not chunk.endswith(EVENT_END):
            end = chunk.rfind(EVENT_END) + 2
            if end == 1:
                self._rest = chunk
                return b""
            self._rest, chunk = chunk[end:], chunk[:end]
        if self._is_plain(chunk):
            self.num_events += chunk.count(EVENT_END)
        else:
            chunk = self._filter(chunk)
        if self.rename is not None:
            chunk = chunk.replace(*self.rename)
        return chunk

    def passes_framed(self, chunk: bytes, start: int) -> bool:
        """Count the one event of a framed HTTP chunk that can go on as it is; false: feed it.

        Made of the cheapest looks there are, as nearly all that engines write comes by here: one
        event on one line that begins as only a completion does and carries no usage.

        Args:
            chunk: The chunk with its framing.
            start: Where its payload begins.
        """
        if (
            self._takes_framed
            and not self._rest
            and chunk.startswith(_COMPLETION, start)
            and chunk.find(b"\n", start) == len(chunk) - len(_FRAMED_END)
            and chunk.endswith(_FRAMED_END)
            and chunk.find(b'"usage"') < 0
        ):
            self.num_events += 1
            return True
        return False

    def _filter(self, chunk: bytes) -> bytes:
        return b"".join(
            event + EVENT_END
            for event in chunk.split(EVENT_END)[:-1]
            if not self.has_failed and self._passes(event)
        )

    def _passes(self, event: bytes) -> bool:
        if event + EVENT_END == DONE_EVENT:
            self.is_complete = True
            return True
        if _ERROR.match(event):
            self.has_failed = True
            return False
        if not self.ends_with_done and _FINISH.search(event):
            self.is_complete = True
        if _USAGE.search(event) and not self._passes_usage(event):
            return False
        self.num_events += 1
        return True

    def _passes_usage(self, event: bytes) -> bool:
        try:
            decoded = _usage_decoder.decode(data_of(event) or b"")
        except msgspec.DecodeError:
            return True
        self.usage = decoded.usage or self.usage
        return self.wants_usage or bool(decoded.choices)

    def _is_plain(self, chunk: bytes) -> bool:
        """Say whether no event of a chunk needs a look: substring searches, no parsing."""
        return not (
            b"[DONE]" in chunk
            or b'"error"' in chunk
            or (b'"usage"' in chunk and _USAGE.search(chunk))
            or (not self.ends_with_done and _FINISH.search(chunk))
        )
