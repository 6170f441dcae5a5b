"""From the bytes of a chat completion to the bytes of a response, streamed or whole."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from maas.core.errors import EngineError
from maas.core.ids import new_id
from maas.gateway.responses.chat_chunks import (
    DONE,
    ChatFault,
    ChatPayload,
    EventReader,
    decode_payload,
)
from maas.gateway.responses.from_chat import Assembler, NewId
from maas.gateway.responses.request import ParsedRequest
from maas.protocol.response_events import Event, encode_event
from maas.protocol.responses import ReasoningConfig, Response, TextConfig


@dataclass(frozen=True)
class Origin:
    """Where ids and times come from, so that tests can pin them."""

    new_id: NewId
    now: Callable[[], int]


def live_origin() -> Origin:
    """Return ids written as OpenAI does (``resp_...``, ``msg_...``) and the real clock."""
    return Origin(
        new_id=lambda prefix: new_id(prefix).replace("-", "_", 1), now=lambda: int(time.time())
    )


def first_response(request: ParsedRequest, origin: Origin) -> Response:
    """Return the response as it begins: the settings asked for, and no output."""
    body = request.body
    return Response(
        id=origin.new_id("resp"),
        created_at=origin.now(),
        model=body.model,
        instructions=body.instructions,
        max_output_tokens=body.max_output_tokens,
        max_tool_calls=body.max_tool_calls,
        metadata=body.metadata or {},
        parallel_tool_calls=body.parallel_tool_calls is not False,
        prompt_cache_key=body.prompt_cache_key,
        reasoning=body.reasoning or ReasoningConfig(),
        safety_identifier=body.safety_identifier,
        temperature=body.temperature,
        text=body.text or TextConfig(),
        tool_choice=body.tool_choice or "auto",
        tools=list(request.tools),
        top_logprobs=body.top_logprobs or 0,
        top_p=body.top_p,
        user=body.user,
    )


def whole_response(completion: bytes, request: ParsedRequest, origin: Origin) -> Response:
    """Translate an unstreamed chat completion.

    Raises:
        EngineError: the engine's answer is not a chat completion, or breaks off inside.
    """
    try:
        payload = decode_payload(completion)
    except (msgspec.DecodeError, RecursionError) as error:
        raise EngineError(f"the engine's answer is not a chat completion: {error}") from None
    if not payload.choices:
        raise EngineError("the engine's answer has no choices")
    assembler = Assembler(first_response(request, origin), new_id=origin.new_id, now=origin.now)
    assembler.add(payload.choices[0])
    if payload.usage is not None:
        assembler.count(payload.usage)
    assembler.finish()
    response = assembler.response
    if response.error is not None:
        raise EngineError(response.error.message)
    return response


class ResponseStream:
    """Translates one chat stream, chunk by chunk, as its bytes arrive.

    Call ``begin`` once, ``feed`` for every chunk, and ``end`` when the engine's stream is
    over. Exactly one terminal event comes out, whatever goes in.
    """

    def __init__(self, request: ParsedRequest, origin: Origin) -> None:
        self._assembler = Assembler(
            first_response(request, origin), new_id=origin.new_id, now=origin.now
        )
        self._reader = EventReader()
        self._is_over = False

    @property
    def is_over(self) -> bool:
        """Whether the terminal event has been written."""
        return self._is_over

    def begin(self) -> bytes:
        """Return the events that open the stream."""
        return _encode(self._assembler.begin())

    def feed(self, chunk: bytes) -> bytes:
        """Return the events this chunk makes; none is an empty string."""
        out: list[Event] = []
        for data in self._reader.feed(chunk):
            if self._is_over:
                break
            out += self._take(data)
        return _encode(out)

    def end(self) -> bytes:
        """Return the events that end the stream, if it has not ended by itself."""
        if self._is_over:
            return b""
        self._is_over = True
        if self._assembler.is_finished:
            return _encode(self._assembler.finish())
        return _encode(
            self._assembler.fail(
                "the engine stopped before the answer was complete", code="engine_unreachable"
            )
        )

    def _take(self, data: bytes) -> list[Event]:
        if data == DONE:
            self._is_over = True
            return self._assembler.finish()
        try:
            payload = decode_payload(data)
        except (msgspec.DecodeError, RecursionError) as error:
            return self._fail(ChatFault(message=f"the engine sent a broken chunk: {error}"))
        if payload.error is not None:
            return self._fail(payload.error)
        return self._add(payload)

    def _add(self, payload: ChatPayload) -> list[Event]:
        out: list[Event] = []
        for choice in payload.choices or []:
            if choice.index == 0:
                out += self._assembler.add(choice)
        if payload.usage is not None:
            self._assembler.count(payload.usage)
        return out

    def _fail(self, fault: ChatFault | str) -> list[Event]:
        self._is_over = True
        if isinstance(fault, str):
            return self._assembler.fail(fault)
        return self._assembler.fail(fault.message, code=str(fault.code or "server_error"))


def _encode(made: list[Event]) -> bytes:
    return b"".join(encode_event(event) for event in made)
