"""The stream filter: any chunk borders give the same bytes."""

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maas.gateway.relay.streams import StreamFilter, usage_of

EVENTS = [
    b'data: {"model":"m","choices":[{"delta":{"content":"a \\"usage\\": {"}}],"usage":null}',
    b'data: {"model":"m","choices":[{"delta":{"content":"[DONE]"},"finish_reason":null}]}',
    b'data: {"model":"m","choices":[{"delta":{},"finish_reason":"stop"}]}',
    b'data: {"model":"m","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}',
    b"data: [DONE]",
]
WHOLE = b"".join(event + b"\n\n" for event in EVENTS)


def _feed(stream: StreamFilter, cuts: list[int]) -> bytes:
    edges = [0, *sorted(cuts), len(WHOLE)]
    pairs = itertools.pairwise(edges)
    return b"".join(stream.feed(WHOLE[a:b]) for a, b in pairs if b > a)


@given(st.lists(st.integers(0, len(WHOLE)), max_size=12))
def test_usage_nobody_asked_for_is_counted_and_taken_out(cuts):
    stream = StreamFilter(wants_usage=False)
    assert _feed(stream, cuts) == WHOLE.replace(EVENTS[3] + b"\n\n", b"")
    assert (stream.usage.prompt_tokens, stream.usage.completion_tokens) == (3, 2)
    assert stream.is_complete
    assert not stream.has_failed


@given(st.lists(st.integers(0, len(WHOLE)), max_size=12))
def test_usage_that_was_asked_for_passes(cuts):
    assert _feed(StreamFilter(wants_usage=True), cuts) == WHOLE


def test_error_of_the_engine_ends_the_stream_and_is_not_passed_on():
    stream = StreamFilter(wants_usage=False)
    out = stream.feed(
        EVENTS[0] + b"\n\n" + b'data: {"error": {"message": "x"}}\n\ndata: [DONE]\n\n'
    )
    assert out == EVENTS[0] + b"\n\n"
    assert stream.has_failed
    assert not stream.is_complete


def test_stream_without_done_is_not_complete():
    stream = StreamFilter(wants_usage=False)
    stream.feed(EVENTS[0] + b"\n\n")
    assert not stream.is_complete


def test_engine_without_done_is_complete_with_its_finish_reason():
    stream = StreamFilter(wants_usage=False, ends_with_done=False)
    stream.feed(EVENTS[2] + b"\n\n")
    assert stream.is_complete


def test_engines_name_is_replaced_by_ours():
    stream = StreamFilter(wants_usage=False, rename=(b'"model":"m"', b'"model":"ours"'))
    assert stream.feed(EVENTS[0] + b"\n\n").startswith(b'data: {"model":"ours"')


@pytest.mark.parametrize("count", [-1, 2**31, 10**30, 1.5, "5", True])
def test_what_is_no_count_is_no_usage(count):
    event = {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": count}}
    assert usage_of(json.dumps(event).encode()) is None
    stream = StreamFilter(wants_usage=False)
    stream.feed(b"data: " + json.dumps(event).encode() + b"\n\n")
    assert stream.usage is None
