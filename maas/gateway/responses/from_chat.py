"""Turns chat completions into responses: one state machine for streams and for whole answers.

``Assembler`` takes pieces of a chat message and returns the Responses events they make.
A whole completion is one piece, whose events are not needed; so the streamed and the
unstreamed form of an answer can not drift apart.
"""

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Literal, TypedDict

import msgspec

from maas.gateway.responses.chat_chunks import (
    ChatMessage,
    ChatUsage,
    Choice,
    PositionLogprob,
    TokenLogprob,
    ToolCall,
)
from maas.protocol import response_events as events
from maas.protocol.responses import (
    IncompleteDetails,
    InputTokensDetails,
    ItemStatus,
    Logprob,
    OutputFunctionCall,
    OutputItem,
    OutputMessage,
    OutputReasoning,
    OutputReasoningText,
    OutputRefusal,
    OutputText,
    OutputTokensDetails,
    Response,
    ResponseError,
    TopLogprob,
    Usage,
)

NewId = Callable[[str], str]
"""Makes an id from a prefix: ``msg`` gives ``msg_...``."""

Part = OutputText | OutputRefusal | OutputReasoningText
_REASONS: dict[str, Literal["max_output_tokens", "content_filter"]] = {
    "length": "max_output_tokens",
    "content_filter": "content_filter",
}


@dataclass
class _Writing:
    """The message or reasoning item being written, and its open part."""

    index: int
    item: OutputMessage | OutputReasoning
    part: Part | None = None

    @property
    def content_index(self) -> int:
        return len(self.item.content) - 1


@dataclass
class _Calling:
    """A function call being written. It is an item only once its name is known."""

    call_id: str | None = None
    name: str | None = None
    held: str = ""
    index: int = -1
    item: OutputFunctionCall | None = None


class Assembler:
    """Builds one response from the pieces of a chat message.

    Args:
        response: The response as it begins: settings echoed, no output.
        new_id: Makes item ids.
        now: The time in seconds, for ``completed_at``.
    """

    def __init__(self, response: Response, *, new_id: NewId, now: Callable[[], int]) -> None:
        self._response = response
        self._new_id = new_id
        self._now = now
        self._output: list[OutputItem] = []
        self._writing: _Writing | None = None
        self._calls: dict[int, _Calling] = {}
        self._sequence = 0
        self._finish_reason: str | None = None
        self._usage: Usage | None = None

    @property
    def response(self) -> Response:
        """The response as it stands."""
        return self._response

    @property
    def is_finished(self) -> bool:
        """Whether the engine has said why it stopped."""
        return self._finish_reason is not None

    def begin(self) -> list[events.Event]:
        """Return the events that open a stream."""
        return self._number(
            iter(
                (
                    events.Created(response=self._response),
                    events.InProgress(response=self._response),
                )
            )
        )

    def add(self, choice: Choice) -> list[events.Event]:
        """Take one piece of the answer; return the events it makes."""
        made = self._number(self._add(choice))
        if choice.finish_reason is not None:
            self._finish_reason = choice.finish_reason
        return made

    def count(self, usage: ChatUsage) -> None:
        """Take the engine's token counts; the last ones seen are the ones told."""
        num_output = usage.completion_tokens or 0
        prompt, completion = usage.prompt_tokens_details, usage.completion_tokens_details
        self._usage = Usage(
            input_tokens=usage.prompt_tokens,
            output_tokens=num_output,
            total_tokens=usage.prompt_tokens + num_output,
            input_tokens_details=InputTokensDetails(
                cached_tokens=(prompt and prompt.cached_tokens) or 0
            ),
            output_tokens_details=OutputTokensDetails(
                reasoning_tokens=(completion and completion.reasoning_tokens) or 0
            ),
        )

    def finish(self) -> list[events.Event]:
        """Close what is open and return the events that end the stream."""
        if any(call.item is None for call in self._calls.values()):
            return self.fail("the engine began a tool call and never named the function")
        return self._number(self._finish())

    def fail(self, message: str, *, code: str = "server_error") -> list[events.Event]:
        """End the stream with an error, keeping what there is of the answer."""
        self._give_up_open_items()
        # The SDK knows a closed list of codes here; the finer one is in the error event.
        self._settle("failed", error=ResponseError(code="server_error", message=message))
        return self._number(
            iter(
                (
                    events.ErrorEvent(message=message, code=code),
                    events.Failed(response=self._response),
                )
            )
        )

    # --- pieces ---------------------------------------------------------------------

    def _add(self, choice: Choice) -> Iterator[events.Event]:
        message = choice.message or choice.delta or ChatMessage()
        if thought := message.reasoning_content or message.reasoning:
            yield from self._write(thought, OutputReasoningText)
        if message.refusal:
            yield from self._write(message.refusal, OutputRefusal)
        if message.content:
            logprobs = choice.logprobs.content if choice.logprobs is not None else None
            yield from self._write(message.content, OutputText, logprobs=logprobs or [])
        for position, call in enumerate(message.tool_calls or []):
            yield from self._call(call.index if call.index is not None else position, call)

    def _write(
        self, text: str, kind: type[Part], *, logprobs: list[PositionLogprob] | None = None
    ) -> Iterator[events.Event]:
        writing, part = yield from self._part_for(kind)
        at = _place(writing)
        if isinstance(part, OutputText):
            added = [_logprob(entry) for entry in logprobs or []]
            part.text += text
            part.logprobs.extend(added)
            yield events.TextDelta(**at, delta=text, logprobs=added)
        elif isinstance(part, OutputRefusal):
            part.refusal += text
            yield events.RefusalDelta(**at, delta=text)
        else:
            part.text += text
            yield events.ReasoningDelta(**at, delta=text)

    def _part_for(self, kind: type[Part]) -> Generator[events.Event, None, tuple[_Writing, Part]]:
        """Return the open part if it is of this kind, else close it and open one."""
        writing = self._writing
        if writing is not None and isinstance(writing.part, kind):
            return writing, writing.part
        is_reasoning = kind is OutputReasoningText
        if writing is not None and isinstance(writing.item, OutputReasoning) != is_reasoning:
            yield from self._close_item("completed")
            writing = None
        if writing is None:
            item: OutputMessage | OutputReasoning = (
                OutputReasoning(id=self._new_id("rs"))
                if is_reasoning
                else OutputMessage(id=self._new_id("msg"))
            )
            self._output.append(item)
            self._writing = writing = _Writing(index=len(self._output) - 1, item=item)
            yield events.ItemAdded(
                output_index=writing.index, item=msgspec.structs.replace(item, content=[])
            )
        yield from self._close_part(writing)
        writing.part = part = kind()
        _append(writing.item, part)
        yield events.PartAdded(**_place(writing), part=kind())
        return writing, part

    def _call(self, key: int, piece: ToolCall) -> Iterator[events.Event]:
        yield from self._close_item("completed")
        call = self._calls.setdefault(key, _Calling())
        function = piece.function
        call.call_id = call.call_id or piece.id
        call.name = call.name or (function and function.name)
        text = call.held + ((function and function.arguments) or "")
        if call.item is None:
            if not call.name:
                call.held = text
                return
            call.held = ""
            call.item = OutputFunctionCall(
                id=self._new_id("fc"), call_id=self._free_call_id(call.call_id), name=call.name
            )
            self._output.append(call.item)
            call.index = len(self._output) - 1
            yield events.ItemAdded(output_index=call.index, item=msgspec.structs.replace(call.item))
        if text:
            call.item.arguments += text
            yield events.ArgumentsDelta(output_index=call.index, item_id=call.item.id, delta=text)

    def _free_call_id(self, wanted: str | None) -> str:
        """The engine's id for the call, unless it is missing or was used: ids must be distinct."""
        used = {call.item.call_id for call in self._calls.values() if call.item is not None}
        return wanted if wanted and wanted not in used else self._new_id("call")

    # --- ends -----------------------------------------------------------------------

    def _close_part(self, writing: _Writing) -> Iterator[events.Event]:
        part = writing.part
        if part is None:
            return
        at = _place(writing)
        if isinstance(part, OutputText):
            yield events.TextDone(**at, text=part.text, logprobs=part.logprobs)
        elif isinstance(part, OutputRefusal):
            yield events.RefusalDone(**at, refusal=part.refusal)
        else:
            yield events.ReasoningDone(**at, text=part.text)
        yield events.PartDone(**at, part=part)
        writing.part = None

    def _close_item(self, status: ItemStatus) -> Iterator[events.Event]:
        writing = self._writing
        if writing is None:
            return
        yield from self._close_part(writing)
        writing.item.status = status
        yield events.ItemDone(output_index=writing.index, item=writing.item)
        self._writing = None

    def _close_calls(self, last_status: ItemStatus) -> Iterator[events.Event]:
        last = max((call.index for call in self._calls.values()), default=-1)
        for call in self._calls.values():
            item = call.item
            if item is None:
                continue
            item.status = last_status if call.index == last else "completed"
            yield events.ArgumentsDone(
                output_index=call.index, item_id=item.id, arguments=item.arguments
            )
            yield events.ItemDone(output_index=call.index, item=item)

    def _finish(self) -> Iterator[events.Event]:
        reason = _REASONS.get(self._finish_reason or "")
        if not self._output:
            # An empty answer is still a message: callers index output[0].
            yield from self._part_for(OutputText)
        cut: ItemStatus = "incomplete" if reason else "completed"
        # Only what was written last can have been cut.
        yield from self._close_calls(cut if self._writing is None else "completed")
        yield from self._close_item(cut)
        if reason:
            self._settle("incomplete", incomplete=IncompleteDetails(reason=reason))
            yield events.Incomplete(response=self._response)
        else:
            self._settle("completed")
            yield events.Completed(response=self._response)

    def _give_up_open_items(self) -> None:
        for item in self._output:
            if item.status == "in_progress":
                item.status = "incomplete"

    def _settle(
        self,
        status: Literal["completed", "incomplete", "failed"],
        *,
        incomplete: IncompleteDetails | None = None,
        error: ResponseError | None = None,
    ) -> None:
        self._response = msgspec.structs.replace(
            self._response,
            status=status,
            completed_at=self._now() if status == "completed" else None,
            incomplete_details=incomplete,
            error=error,
            output=self._output,
            usage=self._usage,
        )

    def _number(self, made: Iterator[events.Event]) -> list[events.Event]:
        numbered = list(made)
        for event in numbered:
            event.sequence_number = self._sequence
            self._sequence += 1
        return numbered


class _Place(TypedDict):
    output_index: int
    item_id: str
    content_index: int


def _place(writing: _Writing) -> _Place:
    return {
        "output_index": writing.index,
        "item_id": writing.item.id,
        "content_index": writing.content_index,
    }


def _append(item: OutputMessage | OutputReasoning, part: Part) -> None:
    if isinstance(part, OutputReasoningText):
        if isinstance(item, OutputReasoning):
            item.content.append(part)
    elif isinstance(item, OutputMessage):
        item.content.append(part)


def _logprob(entry: PositionLogprob) -> Logprob:
    return Logprob(
        token=entry.token,
        logprob=entry.logprob,
        bytes=_utf8(entry),
        top_logprobs=[
            TopLogprob(token=rival.token, logprob=rival.logprob, bytes=_utf8(rival))
            for rival in entry.top_logprobs or []
        ],
    )


def _utf8(entry: TokenLogprob) -> list[int]:
    return list(entry.token.encode()) if entry.bytes is None else entry.bytes
