"""Chunks handed on as they were framed: only whole ones, and the parser keeps its place."""

import asyncio
from itertools import combinations

import pytest

from maas.gateway.corked import Cork
from maas.gateway.relay.engine_http import EngineConnection, EngineResponse, payload_start
from maas.gateway.relay.streams import StreamFilter

HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
# Bodies that look like framing inside, sizes of one and two digits,
# in upper case, padded, with an extension that looks like a size.
BODY = b"3\r\na\r\n\r\n6\r\n5\r\nhel\r\nA\r\n0123456789\r\n10\r\n" + b"x" * 16
BODY += b"\r\n01\r\nz\r\n1;1\r\nz\r\n9\r\nx\r\n1\r\nb\r\n\r\n"
END = b"0\r\n\r\n"
PLAIN = b"a\r\n5\r\nhel0123456789" + b"x" * 16 + b"zzx\r\n1\r\nb\r\n"


def test_body_of_this_test_is_what_it_says():
    rest, plain = BODY, b""
    while rest:
        head, _, rest = rest.partition(b"\r\n")
        size = head.partition(b";")[0]
        plain, rest = plain + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
    assert plain == PLAIN


class _Transport(asyncio.Transport):
    def write(self, data):
        pass

    def abort(self):
        pass

    def set_protocol(self, protocol):
        pass

    def is_closing(self):
        return False

    def pause_reading(self):
        pass

    def resume_reading(self):
        pass


def _begin() -> tuple[EngineConnection, EngineResponse]:
    loop = asyncio.get_running_loop()
    connection = EngineConnection([], loop, Cork(loop), lambda _: None)
    connection.connection_made(_Transport())
    response = connection.send(b"request")
    connection.data_received(HEAD)
    return connection, response


def _deframe(chunk: bytes) -> bytes:
    size, _, rest = chunk.partition(b"\r\n")
    assert len(rest) == int(size, 16) + 2
    return rest[:-2]


async def test_every_cut_gives_the_same_body():
    num_framed = 0
    whole = BODY + END
    for cuts in combinations(range(1, len(whole)), 2):
        connection, response = _begin()
        found: list[bytes] = []

        def take_framed(chunk: bytes, _start: int, found: list[bytes] = found) -> bool:
            nonlocal num_framed
            num_framed += 1
            found.append(_deframe(chunk))
            return True

        response.sink, response.framed_sink = found.append, take_framed
        for start, stop in zip((0, *cuts), (*cuts, len(whole)), strict=True):
            connection.data_received(whole[start:stop])
        assert b"".join(found) == PLAIN, cuts
        assert response.is_complete, cuts
    assert num_framed > 0


async def test_chunk_that_the_sink_leaves_is_parsed():
    connection, response = _begin()
    found: list[bytes] = []
    response.sink, response.framed_sink = found.append, lambda *_: False
    for part in (b"1\r\na\r\n", b"1\r\nb\r\n", END):
        connection.data_received(part)
    assert found == [b"a", b"b"]
    assert response.is_complete


async def test_nothing_is_framed_before_the_first_chunk():
    connection, response = _begin()
    response.framed_sink = lambda *_: pytest.fail("the parser has not seen a chunk yet")
    response.sink = lambda _: None
    connection.data_received(b"1\r\na\r\n")


@pytest.mark.parametrize("data", [b"1\r\na\r\n", b"a\r\n0123456789\r\n", b"2\r\n\r\n\r\n"])
def test_whole_chunks(data):
    assert payload_start(data) == data.index(b"\n") + 1


@pytest.mark.parametrize(
    "data",
    [
        b"0\r\n\r\n",  # the end of the body is the parser's
        b"A\r\n0123456789\r\n",
        b"01\r\na\r\n",
        b"0x1\r\na\r\n",
        b"+1\r\na\r\n",
        b" 1\r\na\r\n",
        b"1;x=y\r\na\r\n",
        b"1\r\na\r\n1\r\nb\r\n",
        b"2\r\na\r\n",
        b"1\r\nab",
        b"\r\n\r\n",
        b"1\r\n",
        b"",
        b"-1\r\na\r\n",
    ],
)
def test_anything_else_goes_to_the_parser(data):
    assert payload_start(data) == 0


EVENT = b'data: {"id":"x","choices":[{"delta":{"content":"a"},"finish_reason":null}]}\n\n'


def _framed(payload: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(payload), payload)


def _passes(stream: StreamFilter, payload: bytes) -> bool:
    chunk = _framed(payload)
    return stream.passes_framed(chunk, payload_start(chunk))


def test_a_plain_event_passes_framed_and_is_counted():
    stream = StreamFilter(wants_usage=False)
    assert _passes(stream, EVENT)
    assert stream.num_events == 1


@pytest.mark.parametrize(
    "payload",
    [
        EVENT[:-1],
        b"data: [DONE]\n\n",
        b'data: {"error":{"message":"no"}}\n\n',
        b'data: {"id":"x","choices":[],"usage":{"prompt_tokens":1}}\n\n',
        EVENT + EVENT,
        EVENT + b"data: [DONE]\n\n",
        b": a comment\n\n",
    ],
)
def test_events_that_need_a_look_do_not_pass_framed(payload):
    stream = StreamFilter(wants_usage=False)
    assert not _passes(stream, payload)
    assert stream.num_events == 0


def test_nothing_passes_framed_behind_half_an_event():
    stream = StreamFilter(wants_usage=False)
    assert stream.feed(EVENT[:10]) == b""
    assert not _passes(stream, EVENT[10:])
    assert stream.feed(EVENT[10:]) == EVENT


def test_nothing_passes_framed_where_the_models_name_is_replaced():
    stream = StreamFilter(wants_usage=False, rename=(b"a", b"b"))
    assert not _passes(stream, EVENT)


def test_nothing_passes_framed_where_a_finish_reason_ends_the_stream():
    assert not _passes(StreamFilter(wants_usage=False, ends_with_done=False), EVENT)
