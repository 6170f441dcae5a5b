"""What waits is sent in order; what the gateway puts off for ever holds nobody up."""

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import msgspec
import pytest

from maas.edge.runtime.fleet import sender as sender_module
from maas.edge.runtime.fleet.sender import Sender
from maas.edge.runtime.server.cloud import Cloud
from maas.edge.runtime.server.counters import Counters
from maas.edge.runtime.server.offline import OfflineQueue
from tests.fakes.gateway import FALLBACK_MODEL, FakeGateway, fake_gateway

PATH = "/v1/chat/completions"


@pytest.fixture
def gateway() -> Iterator[FakeGateway]:
    with fake_gateway() as running:
        running.keys["nonce"] = "device-key"
        yield running


@dataclass
class Post:
    queue: OfflineQueue
    sender: Sender
    gateway: FakeGateway

    def put(self, *texts: str) -> list[str]:
        return [
            self.queue.put(PATH, msgspec.json.encode({"model": "m", "text": text}), "why").id
            for text in texts
        ]

    async def round(self) -> list[str]:
        """Send once; return what the gateway saw."""
        self.gateway.requests.clear()
        await self.sender.send_all()
        return [body["text"] for body in self.gateway.requests]

    def statuses(self) -> list[str]:
        return [self.queue.get(request_id)[1] for request_id in self.queue.ids()]


@pytest.fixture
async def post(gateway: FakeGateway, tmp_path: Path) -> AsyncIterator[Post]:
    queue = OfflineQueue(tmp_path / "queue")
    async with aiohttp.ClientSession() as session:
        cloud = Cloud(session, gateway.url, "device-key")
        cloud.model = FALLBACK_MODEL
        yield Post(queue, Sender(queue, cloud, Counters()), gateway)


async def test_one_that_is_put_off_for_ever_lets_the_others_pass(post):
    post.put("stuck", "b", "c")
    post.gateway.busy_for = "stuck"
    assert [await post.round() for _ in range(4)] == [["stuck"]] * 4
    assert await post.round() == ["stuck", "b", "c"]
    assert post.statuses() == ["queued", "completed", "completed"]
    post.put("d")
    assert await post.round() == ["stuck", "d"]
    # Whose time comes after all is the first.
    post.put("e")
    post.gateway.busy_for = None
    assert await post.round() == ["stuck", "e"]
    assert set(post.statuses()) == {"completed"}


async def test_a_gateway_that_is_busy_with_all_is_not_asked_all(post):
    post.put(*map(str, range(8)))
    post.gateway.status = 503
    rounds = [await post.round() for _ in range(12)]
    assert max(map(len, rounds)) <= 3
    post.gateway.status = 200
    assert await post.round() == list(map(str, range(8)))


async def test_an_answer_that_is_too_long_to_keep_is_failed_once_and_says_so(post, monkeypatch):
    monkeypatch.setattr(sender_module, "MAX_ANSWER_BYTES", 1000)
    (long,) = post.put("long")
    post.gateway.padding_bytes = 2000
    assert await post.round() == ["long"]
    _, status, answer = post.queue.get(long)
    assert (status, answer.status_code, answer.request_id) == ("failed", 413, "req-1")
    assert b"over 1000 bytes" in answer.body
    assert await post.round() == []


async def test_a_retired_device_keeps_what_waits(post):
    post.put("a", "b")
    key = post.gateway.keys.pop("nonce")
    assert await post.round() == ["a"]
    assert post.statuses() == ["queued", "queued"]
    post.gateway.keys["nonce"] = key
    assert await post.round() == ["a", "b"]


async def test_a_full_disk_leaves_what_waits_to_be_sent_again(post, monkeypatch):
    post.put("a")

    def full(*_: object) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patched:
        patched.setattr(post.queue, "answer", full)
        with pytest.raises(OSError, match="no space"):
            await post.round()
    assert post.statuses() == ["queued"]
    assert await post.round() == ["a"]


async def test_what_is_sent_again_after_a_power_cut_has_the_same_idempotency_key(
    post, tmp_path, monkeypatch
):
    post.put("a", "a")

    def power_cut(*_: object) -> None:
        raise OSError("no power")

    with monkeypatch.context() as patched:
        patched.setattr(post.queue, "answer", power_cut)
        with pytest.raises(OSError, match="no power"):
            await post.round()
    again = Sender(OfflineQueue(tmp_path / "queue"), post.sender._cloud, Counters())
    await again.send_all()
    first, repeated, second = (sent["idempotency-key"] for sent in post.gateway.headers)
    assert first == repeated != second
    # Of another model it is another request.
    post.gateway.headers.clear()
    post.put("b")
    post.gateway.status = 503
    for model in ("one", "two", "two"):
        post.sender._cloud.model = model
        await post.round()
    one, two, last = (sent["idempotency-key"] for sent in post.gateway.headers)
    assert one != two == last
