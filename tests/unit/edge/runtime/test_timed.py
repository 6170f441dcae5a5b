"""What a server drips is given up: the head of an answer, a redirect's body, a chunk's size."""

import time
from collections.abc import Iterator

import pytest

from maas.core.errors import SourceUnreachable
from maas.edge.runtime.shelf import timed
from maas.edge.runtime.shelf.sources import HttpSource
from tests.fakes.drip import Dripping, dripping

HEAD = b"HTTP/1.1 206 Partial Content\r\n"


@pytest.fixture
def server() -> Iterator[Dripping]:
    with dripping() as running:
        yield running


@pytest.mark.parametrize(
    "whole",
    [
        *(b"", b"HTTP/1.1 2", HEAD + b"Content-Length: 4\r\nX-Name: "),
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n4\r\nabcd\r\n4;",
        b"HTTP/1.1 100 Continue\r\n",
    ],
)
def test_what_drips_is_given_up_in_time(server, monkeypatch, whole):
    monkeypatch.setattr(timed, "_MAX_WAIT_S", 0.3)
    server.whole = whole
    began = time.monotonic()
    with pytest.raises(SourceUnreachable, match="timed out"):
        list(HttpSource(server.url).read(0, 10))
    assert time.monotonic() - began < 3


def test_the_body_of_a_redirect_is_not_read(server, monkeypatch):
    monkeypatch.setattr(timed, "_MAX_WAIT_S", 0.3)
    with dripping() as there:
        there.whole = HEAD + b"Content-Length: 4\r\n\r\nabcd"
        server.whole = b"HTTP/1.1 302 Found\r\nLocation: " + there.url.encode() + b"/b\r\n\r\n"
        assert b"".join(HttpSource(server.url).read(0, 4)) == b"abcd"


def test_a_body_may_take_longer_than_a_head(server, monkeypatch):
    monkeypatch.setattr(timed, "_MAX_WAIT_S", 0.3)
    server.whole = HEAD + b"Content-Length: 40\r\n\r\n"
    began = time.monotonic()
    assert len(b"".join(HttpSource(server.url).read(0, 40))) == 40
    assert time.monotonic() - began > 0.3
