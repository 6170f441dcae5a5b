"""Heartbeats wait for the store together; one that cannot be taken stops no other."""

import asyncio
import threading

import pytest

from maas.core.errors import AuthenticationFailed, InvalidRequest, StoreUnavailable, Unavailable
from maas.gateway.devices import desk as desks
from maas.gateway.devices.desk import HeartbeatDesk
from maas.store.heartbeats import Beat, Orders

HEARD = Orders(wish=None, size_bytes=0, fallback_model=None, heartbeat_s=60, at=1.0)


class ScriptedStore:
    """Writes batches down; refuses the keys it is told to."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.poison: dict[str, Exception] = {}
        self.gate = threading.Event()
        self.gate.set()

    def take(self, beats):
        assert self.gate.wait(5)
        self.batches.append([beat.key_id for beat in beats])
        for beat in beats:
            if beat.key_id in self.poison:
                raise self.poison[beat.key_id]
        return [
            AuthenticationFailed("retired") if beat.key_id == "retired" else HEARD for beat in beats
        ]


@pytest.fixture
def store() -> ScriptedStore:
    return ScriptedStore()


def beat(key_id: str) -> Beat:
    return Beat(key_id=key_id, bundle_id=None, report={})


async def test_those_that_came_meanwhile_are_one_transaction(store):
    desk = HeartbeatDesk(store.take)
    store.gate.clear()
    waiting = [asyncio.create_task(desk.take(beat(str(n)))) for n in range(150)]
    await asyncio.sleep(0.05)
    store.gate.set()
    assert await asyncio.gather(*waiting) == [HEARD] * 150
    assert [len(batch) for batch in store.batches] in ([1, 64, 64, 21], [64, 64, 22])


async def test_each_hears_its_own_refusal(store):
    desk = HeartbeatDesk(store.take)
    good, bad = await asyncio.gather(
        desk.take(beat("a")), desk.take(beat("retired")), return_exceptions=True
    )
    assert good == HEARD
    assert isinstance(bad, AuthenticationFailed)


@pytest.mark.parametrize("error", [InvalidRequest("no"), ValueError("a bug")])
async def test_one_that_cannot_be_written_does_not_keep_the_others_from_it(store, error):
    desk = HeartbeatDesk(store.take)
    store.poison["bad"] = error
    names = ["a", "bad", "b"]
    heard = await asyncio.gather(*(desk.take(beat(n)) for n in names), return_exceptions=True)
    assert heard[0] == heard[2] == HEARD
    assert isinstance(heard[1], Exception)
    assert await desk.take(beat("c")) == HEARD


async def test_store_that_is_away_is_asked_once_a_batch(store):
    desk = HeartbeatDesk(store.take)
    store.poison["a"] = StoreUnavailable("away")
    heard = await asyncio.gather(*(desk.take(beat(n)) for n in "abc"), return_exceptions=True)
    assert all(isinstance(item, StoreUnavailable) for item in heard)
    assert store.batches == [["a", "b", "c"]]


async def test_client_that_left_stops_nobody(store):
    desk = HeartbeatDesk(store.take)
    store.gate.clear()
    leaving, staying = (asyncio.create_task(desk.take(beat(name))) for name in "ab")
    await asyncio.sleep(0.05)
    leaving.cancel()
    store.gate.set()
    assert await staying == HEARD
    assert await desk.take(beat("c")) == HEARD


async def test_too_many_are_told_to_come_again(store, monkeypatch):
    monkeypatch.setattr(desks, "MAX_WAITING", 2)
    desk = HeartbeatDesk(store.take)
    store.gate.clear()
    first = asyncio.create_task(desk.take(beat("a")))
    await asyncio.sleep(0.05)
    waiting = [asyncio.create_task(desk.take(beat(name))) for name in "bc"]
    await asyncio.sleep(0)
    with pytest.raises(Unavailable):
        await desk.take(beat("d"))
    store.gate.set()
    assert await asyncio.gather(first, *waiting) == [HEARD] * 3
