"""Admission: what a request may cost is reserved and its turn awaited; what it did is settled."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from decimal import Decimal

from maas.core.clock import Clock
from maas.core.errors import LimitExceeded
from maas.core.ids import new_id
from maas.gateway.relay.counting import TokenBound, exact_bound, quick_bound
from maas.gateway.relay.fairness import Claim, FairQueues
from maas.gateway.relay.requests import EngineRequest
from maas.gateway.relay.snapshot import ModelEntry
from maas.gateway.relay.streams import Usage
from maas.gateway.relay.terms import Terms
from maas.ledger.caps import Metric
from maas.ledger.entries import Exactness, Opened
from maas.ledger.prices import Quantity
from maas.ledger.spender import Demand, Reservation, Spender
from maas.protocol.chat import ChatCompletionRequest
from maas.store.money import to_nanos

# What one event carries where an engine does not say: engines send one token in each.
_BYTES_PER_TOKEN = 4
_COUNTED_IN_TOKENS = frozenset(
    {Metric.TOKENS_PER_MINUTE, Metric.TOKENS_PER_DAY, Metric.MONTHLY_BUDGET}
)


@dataclass(slots=True)
class Admitted:
    """A request that may be sent.

    Attributes:
        usage: The engine's own count, once it is known.
    """

    reservation: Reservation
    entry: ModelEntry
    request: EngineRequest
    usage: Usage | None = None

    def follow(self, num_events: Callable[[], int]) -> None:
        """Take what goes out to the client from here on."""
        # A chat's first event has a role and no token.
        num_empty = int(isinstance(self.request.body, ChatCompletionRequest))
        self.reservation.count_delivered = lambda: max(num_events() - num_empty, 0)

    def cost(self, usage: Usage) -> Decimal:
        """Return what an answer with this usage costs."""
        quantity = quantity_of(usage)
        return self.reservation.price.cost(quantity, self.reservation.opened.at)

    def headers(self) -> list[tuple[bytes, bytes]]:
        """Return the ``x-ratelimit-*`` headers: of the limits that are nearest."""
        demands = self.reservation.demands
        return [
            *_rate_headers(demands, Metric.REQUESTS_PER_MINUTE, b"requests"),
            *_rate_headers(demands, Metric.TOKENS_PER_MINUTE, b"tokens"),
        ]


class Admission:
    """Reserves and settles for the relay.

    Args:
        spender: This gateway's purse.
        clock: For windows.
        num_gateways: Says how many share the engines with this one.
    """

    def __init__(
        self, spender: Spender, clock: Clock, *, num_gateways: Callable[[], int] = lambda: 1
    ) -> None:
        self._spender = spender
        self._clock = clock
        self._num_gateways = num_gateways
        self._queues = FairQueues()
        self._late: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def admitted(
        self, terms: Terms, entry: ModelEntry, request: EngineRequest, *, request_id: str
    ) -> AsyncGenerator[Admitted]:
        """Hold a reservation and a turn; settles, or drops where nothing was delivered.

        Raises:
            LimitExceeded: It would pass a limit; nothing was reserved.
        """
        admitted = await self._admit(terms, entry, request, request_id=request_id)
        claim = Claim(
            terms.payer.project_id, terms.weight, terms.priority, request.num_tokens_estimate
        )
        try:
            # Rounded up: no engine stands idle because gateways are many.
            capacity = -(-entry.capacity // max(self._num_gateways(), 1))
            async with self._queues.turn(entry.root, claim, capacity=capacity) as ticket:
                yield admitted
                if admitted.usage is not None:
                    ticket.num_tokens = quantity_of(admitted.usage).num_tokens
        finally:
            self._settle(admitted)

    async def _admit(
        self, terms: Terms, entry: ModelEntry, request: EngineRequest, *, request_id: str
    ) -> Admitted:
        """Reserve the most a request can use.

        Raises:
            LimitExceeded: It would pass a limit; nothing was reserved.
        """
        bound = quick_bound(request, entry)
        opened = Opened(
            id=new_id("res"),
            at=self._clock.now(),
            payer=terms.payer,
            request_id=request_id,
            endpoint=request.path,
            model_id=entry.root,
            tier=terms.price.tier,
            price_id=terms.price.id,
            input_tokens=_guess(request),
        )
        is_patient = _COUNTED_IN_TOKENS.isdisjoint(cap.metric for cap in terms.caps)
        try:
            demands = self._demands(terms, bound)
            reservation = await self._spender.reserve(
                opened, terms.price, demands, is_patient=is_patient
            )
        except LimitExceeded:
            # Bytes say too much may be used. Near a limit it is worth counting tokens.
            if is_patient:
                raise
            bound = await asyncio.to_thread(exact_bound, request, entry)
            demands = self._demands(terms, bound)
            reservation = await self._spender.reserve(opened, terms.price, demands)
        return Admitted(reservation, entry, request)

    def _settle(self, admitted: Admitted) -> None:
        """Charge what was delivered: by the engine's own count, else by what was seen to go out."""
        reservation, usage = admitted.reservation, admitted.usage
        if usage is not None:
            self._spender.settle(reservation, quantity_of(usage), Exactness.EXACT)
        elif reservation.count_delivered():
            task = asyncio.create_task(self._settle_estimated(admitted))
            self._late.add(task)
            task.add_done_callback(self._late.discard)
        else:
            self._spender.drop(reservation)

    def num_waiting(self) -> Mapping[str, int]:
        """Return how many requests wait for their turn, by model."""
        return self._queues.num_waiting()

    async def stop(self) -> None:
        """Wait for charges that are still counted."""
        if self._late:
            await asyncio.wait(self._late)

    async def _settle_estimated(self, admitted: Admitted) -> None:
        reservation = admitted.reservation
        bound = await asyncio.to_thread(exact_bound, admitted.request, admitted.entry)
        quantity = Quantity(
            num_requests=1,
            input_tokens=bound.input_tokens,
            output_tokens=reservation.count_delivered(),
        )
        self._spender.settle(reservation, quantity, Exactness.ESTIMATED)

    def _demands(self, terms: Terms, bound: TokenBound) -> Sequence[Demand]:
        if not terms.caps:
            return ()
        most = terms.price.highest_cost(
            input_tokens=bound.input_tokens,
            output_tokens=bound.output_tokens,
            at=self._clock.now(),
        )
        num_tokens, nanos = bound.input_tokens + bound.output_tokens, to_nanos(most)
        return [self._spender.demand(cap, num_tokens=num_tokens, nanos=nanos) for cap in terms.caps]


def quantity_of(usage: Usage) -> Quantity:
    """Return an engine's usage as the ledger counts it."""
    details = usage.prompt_tokens_details
    return Quantity(
        num_requests=1,
        input_tokens=usage.prompt_tokens,
        cached_tokens=(details.cached_tokens or 0) if details is not None else 0,
        output_tokens=usage.completion_tokens or 0,
    )


def _guess(request: EngineRequest) -> int:
    return sum(map(len, request.texts)) // _BYTES_PER_TOKEN + sum(request.prompt_lengths)


def _rate_headers(
    demands: Sequence[Demand], metric: Metric, name: bytes
) -> list[tuple[bytes, bytes]]:
    pieces = [demand.slice for demand in demands if demand.slice.cap.metric is metric]
    if not pieces:
        return []
    nearest = min(pieces, key=lambda piece: piece.free + piece.remaining)
    left = nearest.free + nearest.remaining
    reset_s = max((nearest.window.end or 0.0) - nearest.used_at, 0.0)
    return [
        (b"x-ratelimit-limit-" + name, b"%d" % nearest.cap.amount),
        (b"x-ratelimit-remaining-" + name, b"%d" % left),
        (b"x-ratelimit-reset-" + name, duration(reset_s).encode()),
    ]


def duration(seconds: float) -> str:
    """Return seconds as the OpenAI API writes them: ``12ms``, ``6.5s``, ``1m0s``."""
    if seconds < 1:
        return f"{round(seconds * 1000)}ms"
    minutes, rest = divmod(seconds, 60)
    text = f"{rest:.3f}".rstrip("0").rstrip(".")
    return f"{int(minutes)}m{text}s" if minutes else f"{text}s"
