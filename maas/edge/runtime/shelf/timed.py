"""HTTP answers that come in time or not at all.

A socket's time limit is for each single byte: a server that sends one a second is never over it.
"""

import http.client
import io
import socket
import time
import urllib.request
from typing import Any

_MAX_WAIT_S = 30.0


class TimedAnswer(http.client.HTTPResponse):
    """An answer whose head, and each piece of whose body, has one time limit for all its bytes."""

    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self._timed = _Timed(self.fp.detach(), sock, time.monotonic() + _MAX_WAIT_S)
        self.fp = io.BufferedReader(self._timed)

    def read1(self, n: int = -1) -> bytes:
        """Return what is there; of a body in chunks not before their next size is there."""
        self._timed.due = time.monotonic() + _MAX_WAIT_S
        return super().read1(n)


class _Timed(io.RawIOBase):
    """A socket's bytes until a time.

    Args:
        raw: Them.
        sock: The socket.
        due: The time, by the monotonic clock.
    """

    def __init__(self, raw: io.RawIOBase, sock: socket.socket, due: float) -> None:
        self._raw = raw
        self._sock = sock
        self.due = due

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        left_s = self.due - time.monotonic()
        if left_s <= 0:
            raise TimeoutError("timed out: it sends all too slowly")
        self._sock.settimeout(left_s)
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Timely(urllib.request.AbstractHTTPHandler):
    def do_open(self, http_class: Any, req: urllib.request.Request, **more: Any) -> Any:
        def connection(host: str, **kwargs: Any) -> http.client.HTTPConnection:
            made: http.client.HTTPConnection = http_class(host, **kwargs)
            made.response_class = TimedAnswer
            return made

        # It calls what makes a connection, and asks no more of it.
        maker: Any = connection
        return super().do_open(maker, req, **more)


class TimedHttp(_Timely, urllib.request.HTTPHandler):
    """Asks by http."""


class TimedHttps(_Timely, urllib.request.HTTPSHandler):
    """Asks by https."""
