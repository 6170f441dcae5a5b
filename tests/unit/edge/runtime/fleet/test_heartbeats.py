"""The pace of heartbeats, and what is told once."""

import asyncio

import aiohttp
import pytest

from maas.core.errors import AuthenticationFailed
from maas.edge.runtime.fleet.gateway import Gateway
from maas.edge.runtime.fleet.heartbeats import Heartbeats, next_delay
from maas.edge.runtime.fleet.state import MAX_ERRORS, StateFile, read_state, state_path
from maas.edge.runtime.fleet.wire import HeartbeatAnswer
from maas.protocol.devices import (
    CounterReport,
    EnergyReport,
    HeartbeatRequest,
    MachineReport,
    MemoryReport,
    SpeedReport,
    UpdateReport,
)


@pytest.mark.parametrize(
    ("heartbeat_s", "num_failures", "expected"),
    [(60, 0, 60), (60, 1, 120), (60, 2, 240), (60, 3, 300), (60, 10**6, 300), (900, 4, 900)],
)
def test_a_gateway_that_is_away_is_asked_ever_more_seldom(heartbeat_s, num_failures, expected):
    assert next_delay(heartbeat_s, num_failures, lambda: 0.5) == pytest.approx(expected)


def test_devices_do_not_come_at_once():
    drawn = [next_delay(60, 0, lambda place=place: place / 10) for place in range(11)]
    assert drawn[0] == pytest.approx(48)
    assert drawn[-1] == pytest.approx(72)
    assert len(set(drawn)) == 11


@pytest.mark.parametrize("said", [0, -5, 1e9, 10**9])
def test_no_gateway_makes_a_device_spin_or_sleep_for_ever(said):
    assert 0.01 < next_delay(said, 0, lambda: 0.5) <= 3600


def beat(store: StateFile) -> HeartbeatRequest:
    return HeartbeatRequest(
        agent_version="1",
        started_at=0,
        bundle_id=None,
        previous_bundle_id=None,
        state="idle",
        update=store.state.result,
        machine=MachineReport("s", "p", 1, 1),
        memory=MemoryReport(1, 1),
        speed=SpeedReport(),
        energy=EnergyReport(),
        counters=CounterReport(),
        errors=list(store.state.errors),
    )


@pytest.fixture
async def known(gateway):
    gateway.keys["nonce"] = "secret"
    async with aiohttp.ClientSession() as session:
        yield Gateway(session, gateway.url, "secret")


async def test_what_went_wrong_is_told_once_and_remembered_until_then(gateway, known, tmp_path):
    store = StateFile(tmp_path)
    store.add_error("engine_error", "it failed")
    store.add_error("engine_error", "it failed")
    store.change(result=UpdateReport("b", 3, "failed", "trial", "no"))
    store = StateFile(tmp_path)
    answers: list[HeartbeatAnswer] = []
    beats = Heartbeats(known, store, lambda: beat(store), answers.append)
    gateway.stop()
    with pytest.raises(Exception, match="127"):
        await beats.beat()
    gateway.start()
    await beats.beat()
    await beats.beat()
    first, second = gateway.heartbeats
    assert [error["message"] for error in first["errors"]] == ["it failed"]
    assert first["update"]["attempt"] == 3
    assert (second["errors"], second["update"]) == ([], None)
    assert [answer.fallback_model for answer in answers] == ["cloud-model"] * 2
    assert read_state(tmp_path).contact.fallback_model == "cloud-model"
    assert read_state(tmp_path).errors == ()


async def test_what_happened_while_a_heartbeat_was_on_its_way_is_told_with_the_next(
    gateway, known, tmp_path
):
    store = StateFile(tmp_path)
    store.add_error("a", "first")

    def report() -> HeartbeatRequest:
        told = beat(store)
        store.add_error("b", "second")
        store.change(result=UpdateReport("b", 1, "succeeded"))
        return told

    await Heartbeats(known, store, report, lambda _: None).beat()
    assert [error.message for error in store.state.errors] == ["second"]
    assert store.state.result is not None


def test_only_so_many_errors_are_kept_the_newest(tmp_path):
    store = StateFile(tmp_path)
    for number in range(50):
        store.add_error("code", f"{number}" + "x" * 5000)
    assert len(store.state.errors) == MAX_ERRORS
    assert store.state.errors[-1].message.startswith("49")
    assert len(store.state.errors[-1].message) <= 500


def test_a_damaged_state_begins_anew(tmp_path):
    state_path(tmp_path).write_text("{")
    assert read_state(tmp_path).failed is None


async def test_heartbeats_go_on_through_a_gateway_that_is_away(gateway, known, tmp_path):
    store = StateFile(tmp_path)
    gateway.heartbeat_s = 0.05
    beats = Heartbeats(known, store, lambda: beat(store), lambda _: None)
    beats._heartbeat_s = 0.05
    task = asyncio.create_task(beats.run())
    await asyncio.to_thread(gateway.wait_beats, 3)
    gateway.stop()
    await asyncio.sleep(0.5)
    assert not task.done()
    gateway.start()
    await asyncio.to_thread(gateway.wait_beats, 3)
    beats.hurry()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_key_that_was_revoked_is_told_apart(gateway, tmp_path):
    async with aiohttp.ClientSession() as session:
        with pytest.raises(AuthenticationFailed):
            await Gateway(session, gateway.url, "old").heartbeat(beat(StateFile(tmp_path)))
