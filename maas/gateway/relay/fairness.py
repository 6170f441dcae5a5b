"""Who goes next to a saturated deployment: fair queueing by work done, in tokens.

Each project has a counter of the tokens it was served, divided by its weight (virtual tokens, as in
"Fairness in Serving Large Language Models", Sheng et al., OSDI 2024). While an engine has room,
requests go straight through. Once it is full they wait here, and the project with the
least virtual tokens goes first; within a project, first come first served. A project of which
nothing waits is lifted to what the others have been served, so that idling earns no credit.
Priority classes come before all that: nothing of a lower class starts while a higher one waits.

No slot stays free while somebody waits, with one exception: answers take seconds, so a project
that comes back to a full engine would wait long for its first token. A slot is kept for each
project that is about and waits for nothing, a quarter of all slots at most, and only from
projects that run their share by weight already. The order is not touched by this: a project is
held back until it may start, and nobody of its class overtakes it meanwhile.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple

# A project counts as being about for so long after its last request.
ABOUT_S = 60.0
# How often it is noted that a project is about.
_NOTED_EVERY_S = 1.0
# At most one slot in so many is kept free.
KEPT_ONE_IN = 4


class Priority(IntEnum):
    """Classes of requests; a lower number goes first."""

    ONLINE = 0
    BATCH = 1
    BACKGROUND = 2


@dataclass(slots=True, eq=False)
class Flow:
    """The requests of one project and class at one deployment.

    Attributes:
        virtual: Tokens charged, divided by the weight; estimates for requests that run.
        virtual_open: The part of it that is such estimates.
        num_running: Requests sent and not over.
        seen_at: When it last asked, within a second.
        waiting: Its requests that wait, in order.
    """

    project_id: str
    priority: Priority
    weight: float
    virtual: float = 0.0
    virtual_open: float = 0.0
    num_running: int = 0
    seen_at: float = 0.0
    waiting: OrderedDict["_Waiter", None] = field(default_factory=OrderedDict["_Waiter", None])


@dataclass(slots=True)
class _Class:
    """The flows of one priority class.

    Attributes:
        flows: Those about, by project; who asked last is last.
        waiting: Those that wait.
        weight: Of all flows together.
        level: The most that a flow had been served when it began a request: where others begin.
    """

    flows: OrderedDict[str, Flow] = field(default_factory=OrderedDict[str, Flow])
    waiting: dict[Flow, None] = field(default_factory=dict[Flow, None])
    weight: float = 0.0
    level: float = 0.0


@dataclass(slots=True)
class Ticket:
    """A request that was let through.

    Attributes:
        weight: Of its project when it began.
        num_charged: Tokens its project was charged when it began: an estimate.
        num_tokens: Tokens it took in the end; whoever holds the ticket says so.
    """

    flow: Flow
    weight: float
    num_charged: int
    num_tokens: int


@dataclass(slots=True, eq=False)
class _Waiter:
    admitted: asyncio.Future[Ticket]
    num_tokens: int


class Claim(NamedTuple):
    """Who asks for a turn.

    Attributes:
        weight: Of the project, above 0; twice the weight, twice the tokens.
        num_tokens: What the request is expected to take.
    """

    project_id: str
    weight: float
    priority: Priority
    num_tokens: int


class FairQueue:
    """The queue in front of one deployment. Is made and lives on one event loop.

    Starting a request looks at every project that waits, and at nothing while there is room.

    Args:
        capacity: Requests that may be open at a time; 0 for no bound.
        now: Seconds on a clock that never goes back; the event loop's where none is given.
    """

    def __init__(self, capacity: int = 0, *, now: Callable[[], float] | None = None) -> None:
        self._now = now or asyncio.get_running_loop().time
        self._classes = tuple(_Class() for _ in Priority)
        self._capacity = capacity
        self._num_running = 0
        self._num_waiting = 0

    @property
    def capacity(self) -> int:
        """Requests that may be open at a time; 0 for no bound."""
        return self._capacity

    @capacity.setter
    def capacity(self, capacity: int) -> None:
        if capacity != self._capacity:
            self._capacity = capacity
            self._advance()

    @property
    def num_waiting(self) -> int:
        """Requests that wait for their turn."""
        return self._num_waiting

    @property
    def num_running(self) -> int:
        """Requests that were let through and are not over."""
        return self._num_running

    def try_enter(self, claim: Claim) -> Ticket | None:
        """Begin a request at once; none where it must wait for its turn."""
        flow = self._flow_of(claim)
        if self._num_waiting or not self._has_room(flow):
            return None
        return self._start(flow, claim.num_tokens)

    async def enter(self, claim: Claim) -> Ticket:
        """Wait for a request's turn."""
        ticket = self.try_enter(claim)
        if ticket is not None:
            return ticket
        flow = self._flow_of(claim)
        waiter = _Waiter(asyncio.get_running_loop().create_future(), claim.num_tokens)
        self._line_up(flow, waiter)
        self._advance()
        try:
            return await waiter.admitted
        except asyncio.CancelledError:
            if not waiter.admitted.cancelled():
                ticket = waiter.admitted.result()
                ticket.num_tokens = 0
                self.leave(ticket)
            elif waiter in flow.waiting:
                self._withdraw(flow, waiter)
                self._advance()
            raise

    def leave(self, ticket: Ticket) -> None:
        """End a request."""
        flow, charged = ticket.flow, ticket.num_charged / ticket.weight
        flow.virtual += ticket.num_tokens / ticket.weight - charged
        flow.num_running -= 1
        flow.virtual_open = flow.virtual_open - charged if flow.num_running else 0.0
        self._num_running -= 1
        if self._num_waiting:
            self._advance()

    def _flow_of(self, claim: Claim) -> Flow:
        flow, now = self._classes[claim.priority].flows.get(claim.project_id), self._now()
        if flow is None or flow.weight != claim.weight or now - flow.seen_at > _NOTED_EVERY_S:
            return self._note(claim, now)
        return flow

    def _note(self, claim: Claim, now: float) -> Flow:
        """Note that a project is about, on what terms, and that others no longer are."""
        class_ = self._classes[claim.priority]
        flow = class_.flows.get(claim.project_id)
        if flow is None:
            flow = Flow(claim.project_id, claim.priority, claim.weight)
            class_.flows[claim.project_id] = flow
            class_.weight += claim.weight
        class_.weight += claim.weight - flow.weight
        flow.weight, flow.seen_at = claim.weight, now
        class_.flows.move_to_end(claim.project_id)
        self._forget(now)
        return flow

    def _forget(self, now: float) -> None:
        """Forget who is no longer about; flows are in the order in which they asked."""
        for class_ in self._classes:
            while class_.flows:
                flow = next(iter(class_.flows.values()))
                if now - flow.seen_at <= ABOUT_S:
                    break
                if flow.num_running or flow.waiting:
                    flow.seen_at = now
                    class_.flows.move_to_end(flow.project_id)
                else:
                    del class_.flows[flow.project_id]
                    class_.weight -= flow.weight

    def _has_room(self, flow: Flow) -> bool:
        if not self._capacity:
            return True
        num_free = self._capacity - self._num_running
        if num_free <= 0 or num_free > self._capacity // KEPT_ONE_IN:
            return num_free > 0
        self._forget(self._now())
        # What a lower class may miss is no reason to hold back a higher one.
        classes = self._classes[: flow.priority + 1]
        num_others = sum(len(class_.flows) - len(class_.waiting) for class_ in classes)
        if not flow.waiting:
            num_others -= 1
        share = self._capacity * flow.weight / sum(class_.weight for class_ in classes)
        return num_free > num_others or flow.num_running < share

    def _line_up(self, flow: Flow, waiter: _Waiter) -> None:
        class_ = self._classes[flow.priority]
        if not flow.waiting:
            flow.virtual = max(flow.virtual, class_.level)
            class_.waiting[flow] = None
        flow.waiting[waiter] = None
        self._num_waiting += 1

    def _withdraw(self, flow: Flow, waiter: _Waiter) -> None:
        del flow.waiting[waiter]
        self._num_waiting -= 1
        if not flow.waiting:
            del self._classes[flow.priority].waiting[flow]

    def _start(self, flow: Flow, num_tokens: int) -> Ticket:
        class_, charged = self._classes[flow.priority], num_tokens / flow.weight
        if flow.virtual < class_.level and not flow.waiting:
            flow.virtual = class_.level
        # What runs is not counted: estimates are taken back when answers are short.
        served = flow.virtual - flow.virtual_open
        class_.level = max(class_.level, served)
        flow.virtual += charged
        flow.virtual_open += charged
        flow.num_running += 1
        self._num_running += 1
        return Ticket(flow, flow.weight, num_tokens, num_tokens)

    def _advance(self) -> None:
        """Let everybody through whose turn it is."""
        while self._num_waiting:
            flow = self._next()
            if not self._has_room(flow):
                return
            waiter = next(iter(flow.waiting))
            if not waiter.admitted.cancelled():
                waiter.admitted.set_result(self._start(flow, waiter.num_tokens))
            self._withdraw(flow, waiter)

    def _next(self) -> Flow:
        """Return whose turn it is: the first of the highest class that waits."""
        waiting = next(class_.waiting for class_ in self._classes if class_.waiting)
        return min(waiting, key=lambda flow: (flow.virtual, flow.num_running))


class FairQueues:
    """The queues of all deployments, by model."""

    def __init__(self) -> None:
        self._queues: dict[str, FairQueue] = {}

    def num_waiting(self) -> dict[str, int]:
        """Return how many requests wait, by model."""
        return {model: queue.num_waiting for model, queue in self._queues.items()}

    def of(self, model: str, capacity: int) -> FairQueue:
        """Return the queue in front of a model's engines.

        Args:
            model: Root id.
            capacity: Requests its engines run at a time; 0 where nobody knows.
        """
        queue = self._queues.get(model)
        if queue is None:
            queue = self._queues[model] = FairQueue()
        queue.capacity = capacity
        return queue
