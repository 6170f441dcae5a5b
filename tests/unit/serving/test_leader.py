"""Leadership: at most one at a time, renewed during a long pass, given up before it runs out."""

import asyncio
import time

import pytest

from maas.core.clock import SystemClock
from maas.core.errors import StoreUnavailable
from maas.serving.leader import LEASE_NAME, GuardedCluster, Leadership, LeadershipLost
from maas.store.leases import LeaseRepository

TTL_S = 0.8


class UnreliableLeases:
    """The real leases, which can be made to fail or to hang."""

    def __init__(self, leases: LeaseRepository) -> None:
        self._leases = leases
        self.is_down = False
        self.is_hanging = False

    def acquire(self, name, holder, *, ttl_s):
        if self.is_down:
            raise StoreUnavailable("down")
        if self.is_hanging:
            time.sleep(TTL_S * 2)
        return self._leases.acquire(name, holder, ttl_s=ttl_s)

    def release(self, name, holder):
        if self.is_down:
            raise StoreUnavailable("down")
        self._leases.release(name, holder)


@pytest.fixture
def leases(database):
    return UnreliableLeases(LeaseRepository(database, SystemClock()))


class Controller:
    """Leads in the background; remembers when it began and ended each term."""

    def __init__(self, leases, holder: str) -> None:
        self.leadership = Leadership(leases, holder=holder, ttl_s=TTL_S)
        self.num_terms = 0
        self.is_leading = False
        self.error: Exception | None = None
        self.task = asyncio.create_task(self.leadership.run(self._term))

    async def _term(self) -> None:
        self.num_terms += 1
        self.is_leading = True
        try:
            while True:
                await asyncio.sleep(0.01)
                if self.error is not None:
                    raise self.error
        finally:
            self.is_leading = False

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.wait({self.task})


@pytest.fixture
async def start(leases):
    started: list[Controller] = []

    def start(holder: str) -> Controller:
        started.append(Controller(leases, holder))
        return started[-1]

    yield start
    leases.is_down = leases.is_hanging = False
    for controller in started:
        await controller.stop()


async def until(is_true) -> float:
    started = time.monotonic()
    while not is_true():
        assert time.monotonic() - started < 5
        await asyncio.sleep(0.01)
    return time.monotonic() - started


async def test_one_leads_for_as_long_as_it_lives(start):
    first, second = start("a"), start("b")
    await until(lambda: first.is_leading or second.is_leading)
    for _ in range(30):
        assert first.is_leading != second.is_leading
        await asyncio.sleep(TTL_S / 10)
    assert first.num_terms + second.num_terms == 1


async def test_leader_that_stops_hands_over_at_once(start):
    first = start("a")
    await until(lambda: first.is_leading)
    second = start("b")
    await first.stop()
    assert await until(lambda: second.is_leading) < TTL_S / 2


async def test_leader_that_cannot_reach_the_store_stops_before_its_lease_runs_out(start, leases):
    controller = start("a")
    await until(lambda: controller.is_leading)
    leases.is_down = True
    assert await until(lambda: not controller.is_leading) < TTL_S
    leases.is_down = False
    await until(lambda: controller.is_leading)
    assert controller.num_terms == 2


async def test_leader_whose_store_hangs_stops_before_its_lease_runs_out(start, leases):
    controller = start("a")
    await until(lambda: controller.is_leading)
    leases.is_hanging = True
    assert await until(lambda: not controller.is_leading) < TTL_S


async def test_leader_whose_lease_is_somebody_elses_stops(start, leases):
    controller = start("a")
    await until(lambda: controller.is_leading)
    leases.release(LEASE_NAME, "a")
    assert leases.acquire(LEASE_NAME, "b", ttl_s=60)
    assert await until(lambda: not controller.is_leading) < TTL_S
    await asyncio.sleep(TTL_S)
    assert not controller.is_leading


async def test_process_that_stood_still_acts_no_more(start):
    controller = start("a")
    await until(lambda: controller.is_leading)
    cluster = GuardedCluster(_AnyCluster(), controller.leadership)
    await cluster.apply(None)
    time.sleep(TTL_S)  # noqa: ASYNC251 - the whole process stands still
    with pytest.raises(LeadershipLost):
        await cluster.apply(None)
    with pytest.raises(LeadershipLost):
        await cluster.delete("x")


async def test_term_that_lost_leadership_in_mid_pass_is_followed_by_another(start):
    controller = start("a")
    await until(lambda: controller.is_leading)
    controller.error = LeadershipLost()
    await until(lambda: not controller.is_leading)
    controller.error = None
    await until(lambda: controller.is_leading)


async def test_fault_in_a_term_ends_the_process_and_frees_the_lease(start):
    controller = start("a")
    await until(lambda: controller.is_leading)
    controller.error = ValueError("a bug")
    with pytest.raises(ValueError, match="a bug"):
        await controller.task
    second = start("b")
    assert await until(lambda: second.is_leading) < TTL_S / 2


class _AnyCluster:
    async def applications(self):
        return {}

    async def apply(self, plan):
        pass

    async def delete(self, deployment_id):
        pass
