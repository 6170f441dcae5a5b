"""Budget alerts: each threshold once, signed so that the OpenAI SDK accepts it, tried again."""

import json
import threading
import time
from collections.abc import Iterator
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from openai import InvalidWebhookSignatureError, OpenAI

from maas.gateway.webhook_sender import is_public
from maas.ledger.prices import Rates
from maas.ledger.tariff import Tariff
from maas.store import webhooks as store_webhooks
from maas.store.limits import LimitKey
from maas.store.records import LimitScope

ASK = {"model": "tiny", "prompt": [1, 2, 3, 4, 5], "max_tokens": 7}


class Receiver(ThreadingHTTPServer):
    """Takes deliveries; refuses the first ``num_refused`` of them."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.got: list[tuple[dict[str, str], str]] = []
        self.num_refused = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/hook"


class _Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"])).decode()
        is_refused = self.server.num_refused > 0
        self.server.num_refused -= is_refused
        if not is_refused:
            self.server.got.append((dict(self.headers), body))
        self.send_response(500 if is_refused else 204)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as receiver:
        threading.Thread(target=receiver.serve_forever, daemon=True).start()
        yield receiver
        receiver.shutdown()


def _wait_for(receiver: Receiver, count: int, timeout_s: float = 15) -> list[dict]:
    deadline = time.monotonic() + timeout_s
    while len(receiver.got) < count and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(receiver.got) == count
    return [json.loads(body) for _, body in receiver.got]


def test_each_threshold_is_said_once_signed_and_until_it_is_taken(
    gateway, engine, receiver, monkeypatch
):
    monkeypatch.setattr(store_webhooks, "PAUSES_S", (0.1,) * 5)
    store = gateway.store
    rates = Rates(*[Decimal(1000)] * 3)
    Tariff(store.database, store.clock).override("tiny", rates, tier="default", currency="USD")
    _, admin = store.keys.create(project_id=gateway.project_id, name="a", scopes=("admin",))
    about = LimitKey(LimitScope.PROJECT, gateway.project_id)
    store.tenancy.limits.set(about, monthly_budget=Decimal("0.12"))
    gateway.wait_seen()
    headers = {"Authorization": f"Bearer {admin}"}
    made = gateway.client.post(
        "/v1/organization/webhooks", json={"name": "ops", "url": receiver.url}, headers=headers
    )
    assert made.status_code == 200, made.text
    secret = made.json()["secret"]
    receiver.num_refused = 2
    for _ in range(5):
        assert gateway.client.post("/v1/completions", json=ASK).status_code == 200
    (half,) = _wait_for(receiver, 1)
    assert half["type"] == "organization.budget.threshold_reached"
    assert half["data"]["percent"] == 50
    assert Decimal(half["data"]["spent"]) == Decimal("0.06")
    for _ in range(6):
        gateway.client.post("/v1/completions", json=ASK)
    events = _wait_for(receiver, 3)
    assert sorted(event["data"]["percent"] for event in events) == [50, 80, 100]
    time.sleep(3)
    _wait_for(receiver, 3)
    sent, body = receiver.got[0]
    with OpenAI(api_key="x", base_url=gateway.url) as client:
        event = client.webhooks.verify_signature(body, sent, secret=secret)
        assert event is None
        with pytest.raises(InvalidWebhookSignatureError):
            client.webhooks.verify_signature(body + " ", sent, secret=secret)
    listed = gateway.client.get("/v1/organization/webhooks", headers=headers).json()["data"]
    assert [hook["secret"] for hook in listed] == [None]
    path = f"/v1/organization/webhooks/{listed[0]['id']}"
    assert gateway.client.delete(path, headers=headers).json()["deleted"] is True
    assert gateway.client.delete(path, headers=headers).status_code == 404


@pytest.mark.parametrize("url", ["ftp://x/y", "nothing", "http://", "file:///etc/passwd"])
def test_an_address_that_is_none_is_refused(gateway, url):
    _, admin = gateway.store.keys.create(project_id=gateway.project_id, name="a", scopes=("admin",))
    gateway.wait_seen()
    answer = gateway.client.post(
        "/v1/organization/webhooks",
        json={"name": "x", "url": url},
        headers={"Authorization": f"Bearer {admin}"},
    )
    assert answer.status_code == 400


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("8.8.8.8", True),
        ("127.0.0.1", False),
        ("10.1.2.3", False),
        ("169.254.169.254", False),
        ("::1", False),
        ("fe80::1%eth0", False),
        ("::ffff:127.0.0.1", False),
        ("2606:4700::1111", True),
        ("64:ff9b::7f00:1", False),
        ("2002:7f00:1::", False),
        ("::7f00:1", False),
        ("224.0.0.1", False),
    ],
)
def test_only_addresses_of_the_internet_are_public(address, expected):
    assert is_public(address) is expected
