"""Who goes next: least served first, by weight, by class; idling earns nothing."""

import asyncio
from collections import Counter

import pytest

from maas.gateway.relay.fairness import ABOUT_S, Claim, FairQueue, FairQueues, Priority


class Line:
    """Asks for turns and notes who was let through, in order."""

    def __init__(self, capacity: int) -> None:
        self.time = 0.0
        self.queue = FairQueue(capacity, now=lambda: self.time)
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

    def visit(self, project: str, **claim) -> None:
        """Have a request that is over at once."""
        claim = {"weight": 1, "priority": Priority.ONLINE, "num_tokens": 10, **claim}
        ticket = self.queue.try_enter(Claim(project, **claim))
        assert ticket is not None
        self.queue.leave(ticket)


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


@pytest.mark.parametrize("capacity", [1, 8, 32])
async def test_three_times_the_weight_is_three_times_the_tokens(capacity):
    line = Line(capacity)
    for _ in range(400):
        line.ask("heavy", weight=3, num_tokens=20)
        line.ask("light", weight=1, num_tokens=10)
    await line.settle()
    await line.finish(300)
    started = Counter(line.order)
    assert 20 * started["heavy"] / (10 * started["light"]) == pytest.approx(3, rel=0.06)


async def test_what_was_charged_too_much_is_given_back():
    line = Line(2)
    for _ in range(200):
        line.ask("guesses high", num_tokens=100)
        line.ask("guesses right", num_tokens=10)
    await line.settle()
    for _ in range(200):
        line.tickets[0].num_tokens = 10
        await line.finish()
    assert line.order.count("guesses high") == pytest.approx(100, abs=10)


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


@pytest.mark.parametrize("num_projects", [1, 2, 3, 5, 33])
@pytest.mark.parametrize("capacity", [1, 4, 8, 64])
async def test_no_slot_is_idle_while_everybody_waits(capacity, num_projects):
    line = Line(capacity)
    for index in range(num_projects):
        for _ in range(3 * capacity):
            line.ask(f"p{index}")
    await line.settle()
    for _ in range(2 * capacity):
        assert line.queue.num_waiting
        assert line.queue.num_running == capacity
        await line.finish()


async def test_a_quarter_of_the_slots_is_the_most_that_is_kept():
    line = Line(16)
    for index in range(30):
        line.visit(f"about {index}")
    for _ in range(40):
        line.ask("greedy")
    await line.settle()
    assert line.queue.num_running == 12


async def test_one_slot_is_kept_for_each_project_that_is_about():
    line = Line(16)
    for index in range(2):
        line.visit(f"about {index}")
    for _ in range(40):
        line.ask("greedy")
    await line.settle()
    assert line.queue.num_running == 14


async def test_nothing_is_kept_from_a_project_below_its_share_by_weight():
    line = Line(8)
    line.visit("light", weight=1)
    for _ in range(20):
        line.ask("heavy", weight=99)
    await line.settle()
    assert line.queue.num_running == 8


async def test_the_weight_of_who_left_no_longer_counts():
    line = Line(8)
    line.visit("gone", weight=99)
    line.time += ABOUT_S + 1
    line.visit("changed", weight=99)
    line.visit("changed", weight=1)
    for _ in range(20):
        line.ask("heavy", weight=9)
    await line.settle()
    assert line.queue.num_running == 8


async def test_a_project_keeps_no_slot_from_itself():
    line = Line(8)
    line.visit("about")
    claim = Claim("a", 1, Priority.ONLINE, 10)
    entered = [line.queue.try_enter(claim) for _ in range(8)]
    assert [ticket is not None for ticket in entered] == [True] * 7 + [False]


async def test_nobody_overtakes_a_project_from_which_a_slot_is_kept():
    line = Line(8)
    line.visit("about")
    line.visit("served much", num_tokens=1_000_000)
    for _ in range(20):
        line.ask("greedy")
    await line.settle()
    line.ask("served much")
    await line.settle()
    assert line.order == ["greedy"] * 7


async def test_nothing_is_kept_for_a_lower_class():
    line = Line(8)
    line.visit("batch", priority=Priority.BATCH)
    for _ in range(20):
        line.ask("online")
    await line.settle()
    assert line.queue.num_running == 8


async def test_slots_are_kept_from_a_lower_class():
    line = Line(8)
    line.visit("online")
    for _ in range(20):
        line.ask("batch", priority=Priority.BATCH)
    await line.settle()
    assert line.queue.num_running == 7


async def test_only_who_has_left_is_taken_for_gone():
    line = Line(8)
    line.visit("stays")
    line.time = 30
    line.visit("leaves")
    line.time = 50
    line.visit("stays")
    line.time = 30 + ABOUT_S + 1
    for _ in range(20):
        line.ask("greedy")
    await line.settle()
    assert line.queue.num_running == 7


@pytest.mark.parametrize("is_waiting", [False, True])
async def test_a_tenant_has_everything_once_the_others_have_left(is_waiting):
    line = Line(8)
    for project in "bcdefg":
        line.visit(project)
    if is_waiting:
        for _ in range(20):
            line.ask("a")
        await line.settle()
        assert line.queue.num_running == 6
    line.time += ABOUT_S + 1
    for _ in range(20):
        line.ask("a")
    await line.settle()
    assert line.queue.num_running == 8


async def test_a_project_is_about_while_its_request_runs():
    line = Line(8)
    line.ask("slow")
    await line.settle()
    line.time += 10 * ABOUT_S
    for _ in range(20):
        line.ask("greedy")
    await line.settle()
    assert line.queue.num_running == 7
    await line.finish()
    assert line.queue.num_running == 7
    line.time += ABOUT_S + 1
    await line.finish()
    assert line.queue.num_running == 8


async def test_who_is_gone_is_forgotten():
    line = Line(8)
    for index in range(1000):
        line.visit(f"p{index}")
        line.time += 1
    flows = [flow for class_ in line.queue._classes for flow in class_.flows]
    assert len(flows) <= ABOUT_S + 1


@pytest.mark.parametrize("is_served_before", [False, True])
async def test_who_goes_straight_through_after_idling_has_no_credit(is_served_before):
    line = Line(4)
    if is_served_before:
        line.visit("rested")
    for _ in range(1000):
        line.visit("busy")
    line.visit("rested")  # nobody is there
    for _ in range(200):
        line.ask("rested")
    for _ in range(200):
        line.ask("busy")
    await line.settle()
    await line.finish(100)
    assert line.order.count("busy") >= 48


async def test_what_went_straight_through_counts_from_there():
    line = Line(4)
    for _ in range(1000):
        line.visit("busy")
    for _ in range(4):
        line.ask("newcomer", num_tokens=50)
    await line.settle()
    for _ in range(30):
        line.ask("newcomer")
        line.ask("busy")
    await line.settle()
    line.order.clear()
    await line.finish(12)
    assert line.order == ["busy"] * 12


async def test_high_estimates_of_others_do_not_hold_a_newcomer_back():
    line = Line(8)
    for _ in range(8):
        line.ask("guesses high", num_tokens=4096)
    for _ in range(200):
        line.ask("guesses high", num_tokens=100)
    await line.settle()
    for _ in range(20):
        line.ask("newcomer", num_tokens=100)
    await line.settle()
    line.order.clear()
    for _ in range(40):
        line.tickets[0].num_tokens = 100
        await line.finish()
    assert line.order.count("newcomer") >= 15


async def test_a_newcomer_nobody_knows_waits_for_one_answer_at_most():
    line = Line(4)
    for _ in range(100):
        line.ask("greedy")
    await line.settle()
    await line.finish(20)
    line.order.clear()
    line.ask("newcomer")
    await line.settle()
    await line.finish()
    assert line.order == ["newcomer"]


async def test_cancelled_waiters_leave_nothing():
    line = Line(2)
    for _ in range(2):
        line.ask("a")
    await line.settle()
    tasks = [line.ask(project) for project in "abc" for _ in range(50)]
    await line.settle()
    assert line.queue.num_waiting == 150
    for task in tasks:
        task.cancel()
    await line.settle()
    assert line.queue.num_waiting == 0
    for class_ in line.queue._classes:
        assert not class_.waiting
        assert not any(flow.waiting for flow in class_.flows.values())
    await line.finish(2)
    assert line.queue.num_running == 0
    assert line.order == ["a", "a"]


async def test_the_cancelled_are_not_charged():
    line = Line(1)
    line.ask("a")
    await line.settle()
    gone = line.ask("b", num_tokens=100_000)
    await line.settle()
    line.queue.leave(line.tickets.pop())  # b's turn, and it is not awake yet
    gone.cancel()
    await line.settle()
    for _ in range(10):
        line.ask("a")
        line.ask("b")
    await line.settle()
    line.order.clear()
    await line.finish(10)
    assert line.order.count("b") in (5, 6)


async def test_more_engines_let_the_waiting_through_at_once():
    queues = FairQueues()
    queue = queues.of("m", 1)
    asked = [asyncio.create_task(queue.enter(Claim("a", 1, Priority.ONLINE, 10))) for _ in range(5)]
    await asyncio.sleep(0)
    assert queues.num_waiting() == {"m": 4}
    queues.of("m", 3)
    assert queues.num_waiting() == {"m": 2}
    queues.of("m", 0)
    assert queues.num_waiting() == {"m": 0}
    await asyncio.gather(*asked)


async def test_a_new_weight_counts_from_the_next_request():
    line = Line(1)
    line.ask("a", weight=1, num_tokens=100)
    await line.settle()
    for _ in range(100):
        line.ask("a", weight=4)
        line.ask("b", weight=1)
    await line.settle()
    line.tickets[0].num_tokens = 10
    await line.finish(50)
    assert line.order.count("a") == pytest.approx(40, abs=2)
