"""Leading: the lease is kept through long passes, and nothing is done without it."""

import asyncio
import threading
import time

import pytest

from maas.core.errors import HostError
from maas.serving.leadership import GuardedCluster, Leadership, LeadershipLost
from maas.store.leases import LeaseRepository

TTL_S = 0.3


class Work:
    """Notes when it runs; each call lasts until it is cancelled."""

    def __init__(self) -> None:
        self.num_starts = 0
        self.is_running = False

    async def __call__(self) -> None:
        self.num_starts += 1
        self.is_running = True
        try:
            await asyncio.sleep(3600)
        finally:
            self.is_running = False


class Lease:
    """A lease whose answers can be set: held, lost, an error, or no answer at all."""

    def __init__(self) -> None:
        self.answer: bool | Exception = True
        self.num_asked = 0
        self.is_silent = threading.Event()
        self.is_let_go = threading.Event()

    def acquire(self) -> bool:
        self.num_asked += 1
        if self.is_silent.is_set():
            self.is_let_go.wait(5)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.fixture
async def led():
    lease, work = Lease(), Work()
    task = asyncio.create_task(Leadership(lease.acquire, ttl_s=TTL_S).lead(work))
    yield lease, work
    lease.is_let_go.set()
    task.cancel()
    await asyncio.wait({task})
    assert not work.is_running


async def _until(check, timeout_s: float = 3.0) -> None:
    async with asyncio.timeout(timeout_s):
        while True:
            if check():
                return
            await asyncio.sleep(0.01)


async def test_lease_is_renewed_while_one_pass_lasts_longer_than_it(led):
    lease, work = led
    await _until(lambda: lease.num_asked >= 7)
    assert (work.num_starts, work.is_running) == (1, True)


async def test_work_stops_when_another_one_holds_the_lease_and_starts_anew_later(led):
    lease, work = led
    await _until(lambda: work.is_running)
    lease.answer = False
    await _until(lambda: not work.is_running, timeout_s=TTL_S)
    lease.answer = True
    await _until(lambda: work.num_starts == 2 and work.is_running)


async def test_one_failed_renewal_is_survived(led):
    lease, work = led
    await _until(lambda: lease.num_asked == 2)
    lease.answer = HostError("busy")
    await _until(lambda: lease.num_asked == 3)
    lease.answer = True
    await asyncio.sleep(2 * TTL_S)
    assert (work.num_starts, work.is_running) == (1, True)


@pytest.mark.parametrize("is_silent", [False, True])
async def test_work_stops_before_a_lease_that_cannot_be_renewed_runs_out(led, is_silent):
    lease, work = led
    await _until(lambda: lease.num_asked == 2)
    started = time.monotonic()
    if is_silent:
        lease.is_silent.set()
    else:
        lease.answer = HostError("the store is away")
    await _until(lambda: not work.is_running)
    assert time.monotonic() - started <= TTL_S + 0.1


async def test_nothing_is_done_without_the_lease():
    lease, work = Lease(), Work()
    lease.answer = False
    task = asyncio.create_task(Leadership(lease.acquire, ttl_s=TTL_S).lead(work))
    await _until(lambda: lease.num_asked >= 3)
    task.cancel()
    await asyncio.wait({task})
    assert work.num_starts == 0


async def test_error_of_the_work_ends_the_leading():
    async def broken() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await asyncio.wait_for(Leadership(lambda: True, ttl_s=TTL_S).lead(broken), 3)


async def test_of_two_controllers_one_acts_and_the_other_follows_it(database, clock):
    leases, works = LeaseRepository(database, clock), (Work(), Work())
    tasks = [
        asyncio.create_task(
            Leadership(lambda name=name: leases.acquire("c", name, ttl_s=TTL_S), ttl_s=TTL_S).lead(
                work
            )
        )
        for name, work in zip("ab", works, strict=True)
    ]
    await _until(lambda: any(work.is_running for work in works))
    await asyncio.sleep(TTL_S)
    assert [work.is_running for work in works].count(True) == 1
    first = 0 if works[0].is_running else 1
    tasks[first].cancel()
    await asyncio.wait({tasks[first]})
    clock.advance(TTL_S + 0.01)
    await _until(lambda: works[1 - first].is_running)
    tasks[1 - first].cancel()
    await asyncio.wait(tasks)


class AnyCluster:
    """A cluster that takes everything."""

    async def applications(self):
        return {}

    async def apply(self, plan):
        pass

    async def delete(self, deployment_id):
        pass


async def test_process_that_stood_still_in_mid_pass_acts_no_more_and_begins_a_new_pass():
    leadership = Leadership(lambda: True, ttl_s=TTL_S)
    cluster = GuardedCluster(AnyCluster(), leadership)
    passes: list[str] = []

    async def work() -> None:
        passes.append("begun")
        await cluster.apply(None)
        if len(passes) == 1:
            time.sleep(TTL_S * 1.1)  # noqa: ASYNC251 - the whole process stands still
            for act in (cluster.apply, cluster.delete):
                with pytest.raises(LeadershipLost):
                    await act(None)
            await cluster.apply(None)
        await asyncio.sleep(3600)

    task = asyncio.create_task(leadership.lead(work))
    await _until(lambda: len(passes) == 2)
    await cluster.delete("x")
    task.cancel()
    await asyncio.wait({task})
    with pytest.raises(LeadershipLost):
        await cluster.apply(None)
