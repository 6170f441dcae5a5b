"""Where deliveries go, and that one tenant's address does not stop those of the others."""

import asyncio
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import cast

import pytest

from maas.core.clock import SystemClock
from maas.gateway import webhook_sender
from maas.gateway.webhook_sender import WebhookSender
from maas.store.webhooks import Delivery, WebhookRepository


class Outbox:
    """Hands out a delivery for each address, one at a time, and keeps how it went."""

    def __init__(self, *urls: str) -> None:
        self.due = [Delivery(f"evt-{url}", url, "whsec_AAAA", "{}", 0) for url in urls]
        self.errors: dict[str, str | None] = {}
        self.is_done = threading.Event()
        self._count = len(urls)

    def claim(self) -> tuple[Delivery, ...]:
        return (self.due.pop(0),) if self.due else ()

    def finish(self, delivery_id: str, error: str | None) -> None:
        self.errors[delivery_id.removeprefix("evt-")] = error
        if len(self.errors) == self._count:
            self.is_done.set()


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.server.num_hits += 1
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


class Neighbour(ThreadingHTTPServer):
    """Something that listens beside the gateway."""

    daemon_threads = True
    num_hits = 0


@pytest.fixture
def neighbour() -> Iterator[Neighbour]:
    with Neighbour(("127.0.0.1", 0), _Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


async def send_all(outbox: Outbox, *, allows_private: bool) -> dict[str, str | None]:
    """Run a sender until every delivery was tried."""
    repository = cast("WebhookRepository", outbox)
    sender = WebhookSender(repository, SystemClock(), unseal=str, allows_private=allows_private)
    await sender.start()
    assert await asyncio.to_thread(outbox.is_done.wait, 10)
    await sender.stop()
    return outbox.errors


@pytest.fixture(autouse=True)
def _eager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook_sender, "_LOOK_EVERY_S", 0.01)


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "１２７.0.0.1", "①②⑦.0.0.1", "127。0。0。1", "[::1]"],  # noqa: RUF001 - what an attacker writes
)
async def test_nothing_beside_the_gateway_is_asked_however_it_is_written(neighbour, host):
    url = f"http://{host}:{neighbour.server_port}/"
    errors = await send_all(Outbox(url), allows_private=False)
    assert "not a public one" in str(errors[url])
    assert neighbour.num_hits == 0


@pytest.mark.parametrize("host", ["a..b", "a" * 64 + ".example"])
async def test_an_address_that_nobody_can_look_up_stops_no_other_delivery(neighbour, host):
    bad, good = f"http://{host}/", f"http://127.0.0.1:{neighbour.server_port}/"
    errors = await send_all(Outbox(bad, good), allows_private=True)
    assert errors[bad]
    assert errors[good] is None
    assert neighbour.num_hits == 1
