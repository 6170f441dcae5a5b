"""Golden files pin what goes over the wire: a change of shape must be meant."""

import json
from pathlib import Path

import msgspec
import pytest
from openai.types.responses import Response as SdkResponse
from openai.types.responses import ResponseStreamEvent
from pydantic import TypeAdapter

from maas.gateway.responses.request import parse_request
from maas.gateway.responses.stream import Origin, ResponseStream, whole_response
from maas.gateway.responses.to_chat import chat_body
from maas.protocol import response_events
from maas.protocol.response_events import encode_event

GOLDEN = Path(__file__).parent / "golden"
CASES = sorted(path.name.removesuffix(".request.json") for path in GOLDEN.glob("*.request.json"))
EVENTS: TypeAdapter[ResponseStreamEvent] = TypeAdapter(ResponseStreamEvent)


def counting_origin() -> Origin:
    """Ids by number and a stopped clock."""
    made: dict[str, int] = {}

    def new_id(prefix: str) -> str:
        made[prefix] = made.get(prefix, 0) + 1
        return f"{prefix}_{made[prefix]}"

    return Origin(new_id=new_id, now=lambda: 1_700_000_000)


def read(case: str, part: str) -> bytes:
    return (GOLDEN / f"{case}.{part}").read_bytes()


def sse_data(stream: bytes) -> list[dict[str, object]]:
    lines = (line for line in stream.splitlines() if line.startswith(b"data: "))
    return [json.loads(line[6:]) for line in lines]


def test_there_are_golden_cases() -> None:
    assert {"text", "tools", "reasoning_cut", "broken"} <= set(CASES)


@pytest.mark.parametrize("case", CASES)
def test_request_is_translated_as_pinned(case: str) -> None:
    made = json.loads(chat_body(parse_request(read(case, "request.json"))))
    assert made == json.loads(read(case, "chat.json"))


@pytest.mark.parametrize("case", CASES)
def test_stream_is_translated_as_pinned(case: str) -> None:
    stream = ResponseStream(parse_request(read(case, "request.json")), counting_origin())
    made = stream.begin() + stream.feed(read(case, "engine.sse")) + stream.end()
    assert sse_data(made) == json.loads(read(case, "events.json"))


@pytest.mark.parametrize("case", CASES)
def test_pinned_events_are_what_the_sdk_declares(case: str) -> None:
    for event in json.loads(read(case, "events.json")):
        parsed = EVENTS.validate_python(event)
        assert parsed.type == event["type"]


def test_unstreamed_completion_is_translated_as_pinned() -> None:
    made = whole_response(
        read("text", "completion.json"),
        parse_request(read("text", "request.json")),
        counting_origin(),
    )
    answer = json.loads(msgspec.json.encode(made))
    assert answer == json.loads(read("text", "response.json"))
    assert SdkResponse.model_validate(answer).output_text == "Paris."


def test_event_bytes_carry_name_and_data() -> None:
    event = response_events.ErrorEvent(message="m", sequence_number=3)
    assert encode_event(event) == (
        b'event: error\ndata: {"type":"error","message":"m","code":null,"param":null,'
        b'"sequence_number":3}\n\n'
    )
