"""Who goes next to a saturated deployment: fair queueing by work done, in tokens.

Each project has a counter of the tokens it was served, divided by its weight (virtual tokens, as in
"Fairness in Serving Large Language Models", Sheng et al., OSDI 2024). While an engine has room,
requests go straight through. Once it is full they wait here, and the project with the
least virtual tokens goes first; within a project, first come first served. A project that was
idle is lifted to the least counter of those who are busy, so that idling earns no credit. Priority
classes come before all that: nothing of a lower class starts while a higher one waits.

Where several projects are about, the last slots are kept from whoever holds more than its
share already: otherwise a newcomer would wait for a whole answer of somebody else.
"""

import asyncio
from collections import deque
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple

# A project counts as being about for so long after its last request.
ABOUT_S = 60.0
# Of the slots, kept from projects that hold more than their share.
RESERVED_SHARE = 4


class Priority(IntEnum):
    """Classes of requests; a lower number goes first."""

    ONLINE = 0
    BATCH = 1
    BACKGROUND = 2


@dataclass(slots=True)
class Flow:
    """One project at one deployment.

    Attributes:
        virtual: Tokens served, divided by the weight.
        num_running: Requests sent and not over.
        num_started: Requests ever sent: of two that were served alike, the newer one goes first.
    """

    weight: float = 1.0
    virtual: float = 0.0
    num_running: int = 0
    num_started: int = 0
    seen_at: float = 0.0
    waiting: dict[Priority, deque["_Waiter"]] = field(
        default_factory=lambda: {priority: deque["_Waiter"]() for priority in Priority}
    )

    @property
    def is_waiting(self) -> bool:
        """Whether any of its requests waits for its turn."""
        return any(self.waiting.values())

    @property
    def is_busy(self) -> bool:
        """Whether it has requests that are not over."""
        return bool(self.num_running) or self.is_waiting


@dataclass(slots=True, eq=False)
class _Waiter:
    admitted: asyncio.Future[None]
    num_tokens: int


@dataclass(slots=True)
class Ticket:
    """A request that was let through.

    Attributes:
        num_charged: Tokens its project was charged when it began: an estimate.
        num_tokens: Tokens it took in the end; whoever holds the ticket says so.
    """

    flow: Flow
    num_charged: int
    num_tokens: int


class Claim(NamedTuple):
    """Who asks for a turn.

    Attributes:
        weight: Of the project; twice the weight, twice the tokens.
        num_tokens: What the request is expected to take.
    """

    project_id: str
    weight: float
    priority: Priority
    num_tokens: int


class FairQueue:
    """The queue in front of one deployment. Lives on one event loop.

    Attributes:
        capacity: Requests that may be open at a time; 0 for no bound.
    """

    def __init__(self, capacity: int = 0) -> None:
        self.capacity = capacity
        self._flows: dict[str, Flow] = {}
        self._num_running = 0
        self._num_waiting = 0

    @property
    def num_waiting(self) -> int:
        """Requests that wait for their turn."""
        return self._num_waiting

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
        flow, priority, num_tokens = self._flow_of(claim), claim.priority, claim.num_tokens
        if not flow.is_busy:
            flow.virtual = max(flow.virtual, self._least_virtual())
        waiter = _Waiter(asyncio.get_running_loop().create_future(), num_tokens)
        flow.waiting[priority].append(waiter)
        self._num_waiting += 1
        self._advance()
        try:
            await waiter.admitted
        except asyncio.CancelledError:
            if not waiter.admitted.cancelled():
                self.leave(Ticket(flow, num_tokens, 0))
            elif waiter in flow.waiting[priority]:
                flow.waiting[priority].remove(waiter)
                self._num_waiting -= 1
                self._advance()
            raise
        return Ticket(flow, num_tokens, num_tokens)

    def leave(self, ticket: Ticket) -> None:
        """End a request."""
        flow = ticket.flow
        flow.virtual += (ticket.num_tokens - ticket.num_charged) / flow.weight
        flow.num_running -= 1
        self._num_running -= 1
        self._advance()

    def _flow_of(self, claim: Claim) -> Flow:
        now = asyncio.get_running_loop().time()
        flow = self._flows.get(claim.project_id)
        if flow is None:
            self._forget(now)
            flow = self._flows[claim.project_id] = Flow(virtual=self._least_virtual())
        flow.weight, flow.seen_at = claim.weight, now
        return flow

    def _forget(self, now: float) -> None:
        idle = [
            name
            for name, flow in self._flows.items()
            if now - flow.seen_at > ABOUT_S and not flow.is_busy
        ]
        for name in idle:
            del self._flows[name]

    def _least_virtual(self) -> float:
        return min((flow.virtual for flow in self._flows.values() if flow.is_busy), default=0.0)

    def _has_room(self, flow: Flow) -> bool:
        if not self.capacity:
            return True
        if self._num_running >= self.capacity:
            return False
        num_others = len(self._flows) - 1
        if not num_others:
            return True
        reserved = max(1, self.capacity // RESERVED_SHARE)
        share = max(1, self.capacity // (num_others + 1))
        return self._num_running < self.capacity - reserved or flow.num_running < share

    def _start(self, flow: Flow, num_tokens: int) -> Ticket:
        flow.num_running += 1
        flow.num_started += 1
        flow.virtual += num_tokens / flow.weight
        self._num_running += 1
        return Ticket(flow, num_tokens, num_tokens)

    def _advance(self) -> None:
        """Let everybody through whose turn it is."""
        while self._num_waiting:
            chosen = self._next()
            if chosen is None:
                return
            flow, waiter = chosen
            self._num_waiting -= 1
            if not waiter.admitted.cancelled():
                self._start(flow, waiter.num_tokens)
                waiter.admitted.set_result(None)

    def _next(self) -> tuple[Flow, _Waiter] | None:
        for priority in Priority:
            waiting = [flow for flow in self._flows.values() if flow.waiting[priority]]
            able = [flow for flow in waiting if self._has_room(flow)]
            if able:
                flow = min(able, key=lambda flow: (flow.virtual, flow.num_started))
                return flow, flow.waiting[priority].popleft()
            if waiting:
                return None  # nothing of a lower class starts while this one waits
        return None


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
