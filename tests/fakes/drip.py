"""A server that says something whole, and the rest a byte at a time, without end."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

_PAUSE_S = 0.02


@dataclass
class Dripping:
    """A server on loopback.

    Attributes:
        url: Where.
        whole: Said at once; then ``x`` follows ``x``.
    """

    url: str
    whole: bytes = b""
    is_over: threading.Event = field(default_factory=threading.Event)

    def answer(self, client: socket.socket) -> None:
        """Answer a client until it leaves."""
        with client, contextlib.suppress(OSError):
            client.recv(65536)
            client.sendall(self.whole)
            while not self.is_over.wait(_PAUSE_S):
                client.sendall(b"x")


@contextmanager
def dripping() -> Iterator[Dripping]:
    """Run one."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = Dripping(f"http://127.0.0.1:{listener.getsockname()[1]}")
        threads: list[threading.Thread] = []

        def accept() -> None:
            with contextlib.suppress(OSError):
                while not server.is_over.is_set():
                    client, _ = listener.accept()
                    threads.append(threading.Thread(target=server.answer, args=(client,)))
                    threads[-1].start()

        threads.append(threading.Thread(target=accept))
        threads[0].start()
        try:
            yield server
        finally:
            server.is_over.set()
            # A thread in accept() is woken by nothing else.
            listener.shutdown(socket.SHUT_RDWR)
            for thread in threads:
                thread.join(5)
