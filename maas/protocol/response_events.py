"""Events of a streamed response, in the shape the OpenAI SDKs parse.

One answer is: ``response.created``, ``response.in_progress``; for every output item
``output_item.added``, its parts (``content_part.added``, deltas, done,
``content_part.done``) or its arguments (deltas, done), ``output_item.done``; and one of
``response.completed``, ``response.incomplete``, or ``error`` with ``response.failed``.
Each carries ``sequence_number``, which grows by one from 0.
"""

import msgspec

from maas.protocol.responses import (
    Logprob,
    OutputItem,
    OutputReasoningText,
    OutputRefusal,
    OutputText,
    Response,
)

Part = OutputText | OutputRefusal | OutputReasoningText


class Event(msgspec.Struct, kw_only=True):
    """Base of all events."""

    sequence_number: int = 0


class Created(Event, tag="response.created"):
    """The response exists."""

    response: Response


class InProgress(Event, tag="response.in_progress"):
    """The model works on it."""

    response: Response


class Completed(Event, tag="response.completed"):
    """The whole answer."""

    response: Response


class Incomplete(Event, tag="response.incomplete"):
    """The answer, cut short for the reason in ``incomplete_details``."""

    response: Response


class Failed(Event, tag="response.failed"):
    """What there was of the answer when it failed."""

    response: Response


class ErrorEvent(Event, tag="error"):
    """Something broke after the stream had begun."""

    message: str
    code: str | None = None
    param: str | None = None


class ItemEvent(Event):
    """Base of events about one output item."""

    output_index: int


class ItemAdded(ItemEvent, tag="response.output_item.added"):
    """An output item began."""

    item: OutputItem


class ItemDone(ItemEvent, tag="response.output_item.done"):
    """An output item is whole."""

    item: OutputItem


class PartEvent(ItemEvent):
    """Base of events about one content part."""

    item_id: str
    content_index: int


class PartAdded(PartEvent, tag="response.content_part.added"):
    """A content part began."""

    part: Part


class PartDone(PartEvent, tag="response.content_part.done"):
    """A content part is whole."""

    part: Part


class TextDelta(PartEvent, tag="response.output_text.delta"):
    """More text."""

    delta: str
    logprobs: list[Logprob] = []


class TextDone(PartEvent, tag="response.output_text.done"):
    """All the text of a part."""

    text: str
    logprobs: list[Logprob] = []


class RefusalDelta(PartEvent, tag="response.refusal.delta"):
    """More of a refusal."""

    delta: str


class RefusalDone(PartEvent, tag="response.refusal.done"):
    """A whole refusal."""

    refusal: str


class ReasoningDelta(PartEvent, tag="response.reasoning_text.delta"):
    """More reasoning."""

    delta: str


class ReasoningDone(PartEvent, tag="response.reasoning_text.done"):
    """All the reasoning of a part."""

    text: str


class ArgumentsDelta(ItemEvent, tag="response.function_call_arguments.delta"):
    """More of a call's arguments."""

    item_id: str
    delta: str


class ArgumentsDone(ItemEvent, tag="response.function_call_arguments.done"):
    """A call's arguments, whole."""

    item_id: str
    arguments: str


def encode_event(event: Event) -> bytes:
    """Return the event as server-sent-event bytes, with its name and its data."""
    name = str(event.__struct_config__.tag)
    return b"event: " + name.encode() + b"\ndata: " + msgspec.json.encode(event) + b"\n\n"
