"""Who goes next: least served first, by weight, by class; idling earns nothing."""

import asyncio
import random
from statistics import quantiles

import pytest

from maas.gateway.relay.fairness import Claim, FairQueue, Priority


class Line:
    """Asks for turns and notes who was let through, in order."""

    def __init__(self, capacity: int) -> None:
        self.queue = FairQueue(capacity)
        self.order: list[str] = []
        self.tickets = []

    def ask(
        self, project: str, *, weight: float = 1, priority=Priority.ONLINE, num_tokens: int = 10
    ) -> asyncio.Task:
        async def go() -> None:
            ticket = await self.queue.enter(Claim(project, weight, priority, num_tokens))
            self.order.append(project)
            self.tickets.append(ticket)

        return asyncio.create_task(go())

    async def settle(self) -> None:
        for _ in range(5):
            await asyncio.sleep(0)

    async def finish(self, count: int = 1) -> None:
        for _ in range(count):
            ticket = self.tickets.pop(0)
            self.queue.leave(ticket)
            await self.settle()


async def test_with_room_nobody_waits():
    line = Line(4)
    for _ in range(4):
        line.ask("a")
    await line.settle()
    assert line.order == ["a"] * 4
    assert line.queue.num_waiting == 0


async def test_a_newcomer_goes_before_a_tenant_that_was_served_more():
    line = Line(1)
    for _ in range(5):
        line.ask("greedy")
    await line.settle()
    line.ask("small")
    await line.settle()
    await line.finish(2)
    assert line.order[:3] == ["greedy", "small", "greedy"]


async def test_long_requests_count_by_their_tokens():
    line = Line(1)
    line.ask("long", num_tokens=1000)
    await line.settle()
    for _ in range(3):
        line.ask("long", num_tokens=1000)
        line.ask("short", num_tokens=10)
    await line.settle()
    await line.finish(4)
    assert line.order[1:5].count("short") == 3


async def test_twice_the_weight_is_twice_the_tokens():
    line = Line(1)
    for _ in range(40):
        line.ask("heavy", weight=2)
        line.ask("light", weight=1)
    await line.settle()
    await line.finish(30)
    assert line.order[:30].count("heavy") == pytest.approx(20, abs=2)


async def test_idling_earns_no_credit():
    line = Line(1)
    for _ in range(60):
        line.ask("busy")
    await line.settle()
    await line.finish(20)
    for _ in range(20):
        line.ask("rested")
    await line.settle()
    line.order.clear()
    await line.finish(20)
    assert line.order.count("busy") >= 9


async def test_nothing_of_a_lower_class_starts_while_a_higher_one_waits():
    line = Line(1)
    line.ask("a")
    await line.settle()
    for _ in range(3):
        line.ask("batch", priority=Priority.BATCH)
        line.ask("background", priority=Priority.BACKGROUND)
        line.ask("a", priority=Priority.ONLINE)
    await line.settle()
    await line.finish(9)
    assert line.order == ["a"] * 4 + ["batch"] * 3 + ["background"] * 3


async def test_a_newcomer_finds_a_slot_beside_a_tenant_that_fills_the_engine():
    line = Line(8)
    line.ask("small")
    await line.settle()
    await line.finish()
    for _ in range(100):
        line.ask("greedy")
    await line.settle()
    line.order.clear()
    line.ask("small")
    await line.settle()
    assert line.order == ["small"]


async def test_a_tenant_alone_has_all_slots():
    line = Line(8)
    for _ in range(20):
        line.ask("only")
    await line.settle()
    assert len(line.order) == 8


@pytest.mark.parametrize("is_admitted", [False, True])
async def test_one_that_gives_up_takes_no_slot(is_admitted):
    line = Line(1)
    line.ask("a")
    await line.settle()
    leaving = line.ask("b")
    line.ask("c")
    await line.settle()
    if is_admitted:
        line.queue.leave(line.tickets.pop())  # b's turn, and it is not awake yet
    leaving.cancel()
    await line.settle()
    if not is_admitted:
        await line.finish()
    assert line.order == ["a", "c"]
    await line.finish()
    assert line.queue.num_waiting == 0
    line.ask("d")
    await line.settle()
    assert line.order[-1] == "d"


async def _p95_wait(*, greedy: bool) -> float:
    """Return the 95th percentile of a small tenant's waits, in steps of 1 ms."""
    queue, random_ = FairQueue(8), random.Random(3)
    waits: list[float] = []
    loop = asyncio.get_running_loop()

    async def request(project: str, seconds: float, *, is_counted: bool) -> None:
        started = loop.time()
        ticket = await queue.enter(Claim(project, 1, Priority.ONLINE, 10))
        if is_counted:
            waits.append(loop.time() - started + 0.005)  # the engine's own time to first token
        await asyncio.sleep(seconds)
        queue.leave(ticket)

    async def tenant(project: str, gap_s: float, count: int, *, is_counted: bool) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(count):
                group.create_task(
                    request(project, random_.uniform(0.01, 0.03), is_counted=is_counted)
                )
                await asyncio.sleep(gap_s)

    async with asyncio.TaskGroup() as group:
        if greedy:
            group.create_task(tenant("greedy", 0.001, 1500, is_counted=False))
        group.create_task(tenant("small", 0.02, 80, is_counted=True))
    return quantiles(waits, n=20)[-1]


async def test_a_greedy_tenant_at_ten_times_the_load_leaves_the_others_their_speed():
    alone = await _p95_wait(greedy=False)
    beside = await _p95_wait(greedy=True)
    assert beside <= 1.5 * alone
