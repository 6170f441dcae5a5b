"""Whatever is asked: no slot idles for nothing, service stays even; first tokens stay fast."""

import asyncio
import heapq
import random
from collections import Counter
from dataclasses import dataclass, field
from statistics import quantiles

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maas.gateway.relay import fairness
from maas.gateway.relay.fairness import ABOUT_S, KEPT_ONE_IN, Claim, FairQueue, Priority, Ticket


@dataclass
class Engine:
    """An engine behind a queue, on a clock of its own.

    Attributes:
        seen: When each project last asked or was answered.
        ends: When each running request is over, the first one first.
    """

    capacity: int
    time: float = 0.0
    queue: FairQueue = field(init=False)
    seen: dict[str, float] = field(default_factory=dict)
    waiting: Counter[str] = field(default_factory=Counter)
    running: Counter[str] = field(default_factory=Counter)
    served: Counter[str] = field(default_factory=Counter)
    waits: dict[str, list[float]] = field(default_factory=dict)
    ends: list[tuple[float, int, str, Ticket]] = field(default_factory=list)
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    num_started: int = 0

    def __post_init__(self) -> None:
        self.queue = FairQueue(self.capacity, now=lambda: self.time)

    async def ask(
        self, project: str, *, weight: float = 1.0, guess: int, actual: int, seconds: float
    ) -> None:
        """Send a request; comes back when it waits or runs."""
        self.seen[project] = asked_at = self.time
        self.waiting[project] += 1

        async def go() -> None:
            ticket = await self.queue.enter(Claim(project, weight, Priority.ONLINE, guess))
            ticket.num_tokens = actual
            self.waiting[project] -= 1
            self.running[project] += 1
            self.waits.setdefault(project, []).append(self.time - asked_at)
            self.num_started += 1
            heapq.heappush(self.ends, (self.time + seconds, self.num_started, project, ticket))

        task = asyncio.create_task(go())
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        await self.settle()

    async def finish(self) -> str:
        """Let the request that is over first end; return whose it was."""
        end, _, project, ticket = heapq.heappop(self.ends)
        self.time = max(self.time, end)
        self.seen[project] = self.time
        self.running[project] -= 1
        self.served[project] += ticket.num_tokens
        self.queue.leave(ticket)
        await self.settle()
        return project

    async def run_until(self, time: float) -> None:
        """Let everything end that is over by then."""
        while self.ends and self.ends[0][0] <= time:
            await self.finish()
        self.time = time

    async def settle(self) -> None:
        for _ in range(4):
            await asyncio.sleep(0)

    async def stop(self) -> None:
        for task in self.tasks:
            task.cancel()
        await self.settle()

    def check_work_conservation(self) -> None:
        """A slot is idle beside somebody who waits only where somebody else may come."""
        num_idle = self.capacity - self.queue.num_running
        assert num_idle >= 0
        assert self.queue.num_waiting == sum(self.waiting.values())
        if not self.queue.num_waiting:
            return
        absent = [
            project
            for project, seen_at in self.seen.items()
            if self.time - seen_at <= ABOUT_S or self.running[project]
            if not self.waiting[project]
        ]
        assert num_idle <= min(self.capacity // KEPT_ONE_IN, len(absent))


PROJECTS = "abcd"
STEPS = st.lists(
    st.one_of(
        st.tuples(
            st.sampled_from(PROJECTS),
            st.integers(1, 12),  # requests
            st.integers(1, 300),  # tokens guessed
            st.integers(0, 400),  # tokens taken
        ),
        st.sampled_from(["finish", "wait", "wait long"]),
    ),
    max_size=60,
)
WEIGHTS = st.fixed_dictionaries({project: st.integers(1, 8) for project in PROJECTS})


@given(steps=STEPS, weights=WEIGHTS, capacity=st.integers(1, 24))
@settings(max_examples=150, deadline=None)
def test_no_slot_is_idle_while_somebody_waits_but_the_few_kept_for_others(steps, weights, capacity):
    async def check() -> None:
        engine = Engine(capacity)
        for step in steps:
            if step == "finish":
                if engine.ends:
                    await engine.finish()
            elif step in ("wait", "wait long"):
                # There are no timers: what is late is seen with the next request, or answer.
                engine.time += 1.5 if step == "wait" else ABOUT_S + 1
                continue
            else:
                project, count, guess, actual = step
                for _ in range(count):
                    await engine.ask(
                        project, weight=weights[project], guess=guess, actual=actual, seconds=1
                    )
            engine.check_work_conservation()
        while engine.ends:
            await engine.finish()
            engine.check_work_conservation()
        assert not engine.tasks
        assert engine.queue.num_running == engine.queue.num_waiting == 0

    asyncio.run(check())


@given(
    seed=st.integers(0, 10**6),
    weights=st.tuples(st.integers(1, 8), st.integers(1, 8)),
    most=st.tuples(st.integers(1, 500), st.integers(1, 500)),
    capacity=st.integers(1, 24),
    is_exact=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_two_that_always_wait_are_served_alike(seed, weights, most, capacity, is_exact):
    """The bound of start-time fair queueing over D slots (Jin et al., SIGMETRICS 2004, section 4).

    (D + 1) times the longest request of each, by its weight. A third project comes and goes.
    """

    async def check() -> None:
        random_, engine = random.Random(seed), Engine(capacity)
        terms = dict(zip("ab", zip(weights, most, strict=True), strict=True))

        async def ask(project: str) -> None:
            weight, longest = terms[project]
            guess = random_.randint(1, longest)
            actual = guess if is_exact else random_.randint(0, guess)
            seconds = random_.uniform(0.1, 4)
            await engine.ask(project, weight=weight, guess=guess, actual=actual, seconds=seconds)

        bound = (capacity + 1) * sum(longest / weight for weight, longest in terms.values())
        for project in "ab":
            for _ in range(2 * capacity + 2):
                await ask(project)
        for _ in range(300):
            while min(engine.waiting[project] for project in "ab") <= capacity:
                await ask(min("ab", key=lambda project: engine.waiting[project]))
            if random_.random() < 0.1:
                await engine.ask("visitor", guess=50, actual=50, seconds=1)
            await engine.finish()
            by_weight = [engine.served[project] / terms[project][0] for project in "ab"]
            assert abs(by_weight[0] - by_weight[1]) <= bound
        await engine.stop()

    asyncio.run(check())


TENANTS: tuple[str, ...] = ("one", "two", "three")
TTFT_ALONE_S = 0.1


async def _p95_ttft(*, greedy_times: float, projects: dict[str, str] | None = None) -> float:
    """Return the 95th percentile of the time to first token of three modest tenants, in seconds.

    Each asks once in 4 s for an answer of 1 s. A greedy tenant asks for answers of 4 s so often
    that its load is ``greedy_times`` as high as one of theirs.
    """
    random_, engine = random.Random(5), Engine(16)
    projects = projects or {}
    arrivals: list[tuple[float, str]] = []
    gaps: dict[str, float] = dict.fromkeys(TENANTS, 4.0)
    if greedy_times:
        gaps["greedy"] = 16.0 / greedy_times
    for tenant, gap_s in gaps.items():
        time = 0.0
        while (time := time + random_.expovariate(1 / gap_s)) < 600:
            arrivals.append((time, tenant))
    for time, tenant in sorted(arrivals):
        await engine.run_until(time)
        size = 400 if tenant == "greedy" else 100
        name = projects.get(tenant, tenant)
        await engine.ask(name, guess=size, actual=size, seconds=size / 100)
    await engine.run_until(600)
    await engine.stop()
    modest = {projects.get(tenant, tenant) for tenant in TENANTS}
    return quantiles((TTFT_ALONE_S + wait for name in modest for wait in engine.waits[name]), n=20)[
        -1
    ]


async def test_beside_a_greedy_tenant_the_others_keep_their_time_to_first_token():
    alone = await _p95_ttft(greedy_times=0)
    beside = await _p95_ttft(greedy_times=100)
    assert beside <= 1.5 * alone


async def test_first_come_first_served_they_would_not():
    one_project = dict.fromkeys([*TENANTS, "greedy"], "all")
    alone = await _p95_ttft(greedy_times=0, projects=one_project)
    beside = await _p95_ttft(greedy_times=100, projects=one_project)
    assert beside > 10 * alone


async def test_without_slots_kept_for_them_they_would_not(monkeypatch):
    monkeypatch.setattr(fairness, "KEPT_ONE_IN", 10**6)
    alone = await _p95_ttft(greedy_times=0)
    beside = await _p95_ttft(greedy_times=100)
    assert beside > 1.5 * alone


@pytest.mark.parametrize("greedy_times", [10, 30, 100, 1000])
async def test_any_number_of_requests_of_one_tenant_is_the_same_to_the_others(greedy_times):
    assert await _p95_ttft(greedy_times=greedy_times) <= 1.5 * TTFT_ALONE_S


@given(seed=st.integers(0, 10**6), capacity=st.integers(1, 8))
@settings(max_examples=50, deadline=None)
def test_whoever_gives_up_whenever_no_slot_is_lost(seed, capacity):
    async def request(queue: FairQueue, project: str, num_turns: int) -> None:
        claim = Claim(project, 1.0, Priority.ONLINE, 10)
        ticket = queue.try_enter(claim) or await queue.enter(claim)
        try:
            for _ in range(num_turns):
                await asyncio.sleep(0)
        finally:
            queue.leave(ticket)

    async def check() -> None:
        random_, queue = random.Random(seed), FairQueue(capacity)
        tasks: list[asyncio.Task[None]] = []
        for _ in range(200):
            project, num_turns = random_.choice("abcd"), random_.randint(0, 6)
            tasks.append(asyncio.create_task(request(queue, project, num_turns)))
            if random_.random() < 0.5:
                random_.choice(tasks).cancel()
            if random_.random() < 0.6:
                await asyncio.sleep(0)
        await asyncio.wait(tasks, timeout=10)
        assert all(task.done() for task in tasks)
        assert queue.num_running == queue.num_waiting == 0

    asyncio.run(check())
