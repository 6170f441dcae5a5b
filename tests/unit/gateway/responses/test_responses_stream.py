"""The stream translator: any chunk borders, any order of pieces, exactly one end."""

import itertools
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai._types import omit
from openai.lib.streaming.responses._responses import ResponseStreamState
from openai.types.responses import ResponseStreamEvent
from pydantic import TypeAdapter

from maas.core.errors import EngineError
from maas.gateway.responses.chat_chunks import EventReader
from maas.gateway.responses.request import ParsedRequest, parse_request
from maas.gateway.responses.stream import Origin, ResponseStream, live_origin, whole_response

EVENTS: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
REQUEST: ParsedRequest = parse_request(b'{"model":"m","input":"hi","stream":true}')
TERMINAL = {"response.completed", "response.incomplete", "response.failed"}
Event = dict[str, Any]


def origin() -> Origin:
    made = iter(range(10_000))
    return Origin(new_id=lambda prefix: f"{prefix}_{next(made)}", now=lambda: 7)


def events_of(*chunks: bytes) -> list[Event]:
    stream = ResponseStream(REQUEST, origin())
    out = stream.begin() + b"".join(stream.feed(chunk) for chunk in chunks) + stream.end()
    found: list[Event] = []
    for block in out.split(b"\n\n")[:-1]:
        name, data = block.split(b"\n")
        event = json.loads(data.removeprefix(b"data: "))
        assert name == b"event: " + event["type"].encode()
        found.append(event)
    return found


def sse(*payloads: dict[str, Any], end: bytes = b"data: [DONE]\n\n", eol: bytes = b"\n") -> bytes:
    lines = (b"data: " + json.dumps(payload).encode() + eol + eol for payload in payloads)
    return b"".join(lines) + end


def piece(finish: str | None = None, **delta: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}


def call(index: int, arguments: str, name: str | None = None, id: str | None = None) -> Event:
    function = {"name": name, "arguments": arguments}
    return piece(tool_calls=[{"index": index, "id": id, "function": function}])


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
PIECES = st.one_of(
    TEXTS.map(lambda text: piece(content=text)),
    TEXTS.map(lambda text: piece(reasoning=text)),
    TEXTS.map(lambda text: piece(reasoning_content=text)),
    TEXTS.map(lambda text: piece(refusal=text)),
    st.tuples(st.integers(0, 2), TEXTS).map(lambda it: call(it[0], it[1], "f", f"id{it[0]}")),
)


@settings(max_examples=200, deadline=None)
@given(
    pieces=st.lists(PIECES, max_size=8),
    cuts=st.lists(st.integers(0, 3000), max_size=12),
    eol=st.sampled_from([b"\n", b"\r\n", b"\r"]),
)
def test_chunk_borders_change_nothing(pieces: list[Event], cuts: list[int], eol: bytes) -> None:
    raw = sse(*pieces, piece(finish="stop"), eol=eol)
    borders = sorted({0, len(raw), *(cut % (len(raw) + 1) for cut in cuts)})
    chunks = [raw[a:b] for a, b in itertools.pairwise(borders)]
    assert events_of(*chunks) == events_of(raw)


@pytest.mark.parametrize("cut", range(1, 30))
def test_an_event_of_several_lines_is_one_wherever_it_is_cut(cut: int) -> None:
    raw = b": hi\r\ndata: a\r\ndata: b\r\n\r\nevent: x\r\n"
    reader = EventReader()
    assert [*reader.feed(raw[:cut]), *reader.feed(raw[cut:])] == [b"a\nb"]


@settings(max_examples=200, deadline=None)
@given(pieces=st.lists(PIECES, max_size=8), finish=st.sampled_from(["stop", "length", None]))
def test_any_stream_is_one_the_sdk_accepts(pieces: list[Event], finish: str | None) -> None:
    events = events_of(sse(*pieces, piece(finish=finish)))
    state: ResponseStreamState[Any] = ResponseStreamState(input_tools=omit, text_format=omit)
    for event in events:
        state.handle_event(EVENTS.validate_python(event))
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert [event["type"] for event in events if event["type"] in TERMINAL] == [events[-1]["type"]]


@settings(max_examples=100, deadline=None)
@given(pieces=st.lists(PIECES, max_size=8))
def test_deltas_add_up_to_the_final_output(pieces: list[Event]) -> None:
    events = events_of(sse(*pieces, piece(finish="stop")))
    written: dict[tuple[int, int], str] = {}
    for event in events:
        if event["type"].endswith(".delta"):
            key = (event["output_index"], event.get("content_index", 0))
            written[key] = written.get(key, "") + event["delta"]
    final: dict[tuple[int, int], str] = {}
    for i, item in enumerate(events[-1]["response"]["output"]):
        if item["type"] == "function_call":
            final[i, 0] = item["arguments"]
        for j, part in enumerate(item.get("content", [])):
            final[i, j] = part.get("text", part.get("refusal"))
    assert written == {key: text for key, text in final.items() if text}
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert sorted(done, key=lambda item: item["id"]) == sorted(
        events[-1]["response"]["output"], key=lambda item: item["id"]
    )


def test_empty_answer_is_one_empty_message() -> None:
    last = events_of(sse(piece(content="", finish="stop")))[-1]
    assert last["type"] == "response.completed"
    assert [part["text"] for part in last["response"]["output"][0]["content"]] == [""]


@pytest.mark.parametrize(
    "rest",
    [
        b"",
        b'data: {"choi',
        b'event: error\ndata: {"error":{"message":"gone","code":"engine_unreachable"}}\n\n',
        b'data: {"error":"gone"}\n\ndata: [DONE]\n\n',
        b"data: {nonsense}\n\ndata: [DONE]\n\n",
        b'data: {"choices":[{"delta":{"content":5}}]}\n\ndata: [DONE]\n\n',
    ],
)
def test_an_engine_that_dies_is_a_failure_never_a_completion(rest: bytes) -> None:
    events = events_of(sse(piece(content="Half"), end=rest))
    assert [event["type"] for event in events[-2:]] == ["error", "response.failed"]
    failed = events[-1]["response"]
    assert failed["status"] == "failed"
    assert failed["error"]["code"] == "server_error"
    assert failed["output"][0]["status"] == "incomplete"
    assert failed["output"][0]["content"][0]["text"] == "Half"


def test_error_code_reaches_the_client() -> None:
    error = events_of(b'data: {"error":{"message":"gone","code":"engine_unreachable"}}\n\n')[-2]
    assert (error["code"], error["message"]) == ("engine_unreachable", "gone")


def test_nothing_follows_the_end() -> None:
    stream = ResponseStream(REQUEST, origin())
    stream.feed(sse(piece(content="a", finish="stop")))
    assert stream.is_over
    assert stream.feed(sse(piece(content="b"))) + stream.end() == b""


def test_call_without_a_name_fails() -> None:
    assert events_of(sse(call(0, "{}"), piece(finish="tool_calls")))[-1]["type"] == (
        "response.failed"
    )


def test_arguments_before_the_name_are_held_until_it_comes() -> None:
    events = events_of(sse(call(0, "{"), call(0, "}", "f", "c"), piece(finish="tool_calls")))
    item = events[-1]["response"]["output"][0]
    assert (item["name"], item["call_id"], item["arguments"]) == ("f", "c", "{}")


def test_only_the_last_call_can_have_been_cut() -> None:
    events = events_of(sse(call(0, "{}", "f", "a"), call(1, "{", "f", "b"), piece("length")))
    assert [item["status"] for item in events[-1]["response"]["output"]] == [
        "completed",
        "incomplete",
    ]
    assert events[-1]["response"]["incomplete_details"] == {"reason": "max_output_tokens"}


def test_other_choices_are_passed_over() -> None:
    other = {"choices": [{"index": 1, "delta": {"content": "no"}}]}
    events = events_of(sse(other, piece(content="yes", finish="stop")))
    assert [part["text"] for part in events[-1]["response"]["output"][0]["content"]] == ["yes"]


@settings(max_examples=100, deadline=None)
@given(
    content=st.none() | TEXTS,
    reasoning=st.none() | TEXTS,
    arguments=st.lists(TEXTS, max_size=3),
    finish=st.sampled_from(["stop", "length", "tool_calls", "content_filter"]),
)
def test_whole_and_streamed_answers_agree(
    content: str | None, reasoning: str | None, arguments: list[str], finish: str
) -> None:
    calls = [
        {"id": f"id{i}", "type": "function", "function": {"name": "f", "arguments": text}}
        for i, text in enumerate(arguments)
    ]
    message = {"role": "assistant", "content": content, "reasoning": reasoning}
    whole = {"choices": [{"message": {**message, "tool_calls": calls}, "finish_reason": finish}]}
    deltas = [{**made, "index": i} for i, made in enumerate(calls)]
    streamed = events_of(sse(piece(**message), piece(finish, tool_calls=deltas)))[-1]["response"]
    answer = whole_response(json.dumps(whole).encode(), REQUEST, origin())
    assert streamed["output"] == json.loads(msgspec.json.encode(answer.output))
    assert streamed["status"] == answer.status


@pytest.mark.parametrize(
    "raw",
    [b"", b"<html>", b"{}", b'{"choices":[]}', b'{"choices":[{"message":{"content":5}}]}'],
)
def test_an_answer_that_is_no_completion_is_an_engine_error(raw: bytes) -> None:
    with pytest.raises(EngineError):
        whole_response(raw, REQUEST, origin())


def test_ids_are_written_as_openai_writes_them() -> None:
    made = live_origin().new_id("resp")
    assert made.startswith("resp_")
    assert made.removeprefix("resp_").isalnum()
