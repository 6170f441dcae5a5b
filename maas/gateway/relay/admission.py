"""Admission: what a request may cost is reserved and its turn awaited; what it did is settled."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from maas.core.clock import Clock
from maas.core.errors import LimitExceeded
from maas.gateway.relay.counting import TokenBound, count_answer, exact_bound, quick_bound
from maas.gateway.relay.fairness import Claim, FairQueue, FairQueues, Ticket
from maas.gateway.relay.requests import EngineRequest
from maas.gateway.relay.snapshot import ModelEntry
from maas.gateway.relay.streams import Usage
from maas.gateway.relay.terms import Terms
from maas.ledger.caps import COUNTED_IN_TOKENS, Amounts
from maas.ledger.entries import Exactness, Opened
from maas.ledger.prices import Quantity
from maas.ledger.reservation import Reservation
from maas.ledger.slices import Account
from maas.ledger.spender import Spender
from maas.protocol.chat import ChatCompletionRequest
from maas.store.money import to_nanos

# What one event carries where an engine does not say: engines send one token in each.
_BYTES_PER_TOKEN = 4
_UNCAPPED = Amounts()
COST_HEADER = b"x-maas-cost"
_RATE_HEADERS = tuple(
    tuple(b"x-ratelimit-%b-%b" % (what, name) for what in (b"limit", b"remaining", b"reset"))
    for name in (b"requests", b"tokens")
)


@dataclass(slots=True)
class Admitted:
    """A request that may be sent.

    Attributes:
        quantity: What it took by the engine's own count, once that is known.
        uncounted: A whole answer that came without the engine's count.
        is_given_up: Whether its client left once an engine had it, which has read the prompt.
        now: The clock.
    """

    reservation: Reservation
    entry: ModelEntry
    request: EngineRequest
    now: Callable[[], float]
    queue: FairQueue | None = None
    ticket: Ticket | None = None
    quantity: Quantity | None = None
    uncounted: bytes | None = None
    is_given_up: bool = False

    def follow(self, num_events: Callable[[], int]) -> None:
        """Take what goes out to the client from here on."""
        # The first event of each of a chat's answers has a role and no token.
        body = self.request.body
        num_empty = (body.n or 1) if isinstance(body, ChatCompletionRequest) else 0
        self.reservation.count_delivered = lambda: max(num_events() - num_empty, 0)

    def take_answer(self, body: bytes, usage: Usage | None) -> None:
        """Take a whole answer on its way out; of an engine that does not count, its text is."""
        self.take_usage(usage)
        if usage is None:
            self.uncounted = body

    def take_usage(self, usage: Usage | None) -> None:
        """Take the engine's own count; the first one is final."""
        if usage is not None and self.quantity is None:
            self.quantity = quantity_of(usage)

    def cost_header(self) -> list[tuple[bytes, bytes]]:
        """Return the header with what the answer costs; none before that is known."""
        if self.quantity is None:
            return []
        reservation = self.reservation
        amount = f"{reservation.cost(self.quantity):f} {reservation.price.currency}"
        return [(COST_HEADER, amount.encode())]

    def rate_headers(self) -> list[tuple[bytes, bytes]]:
        """Return the ``x-ratelimit-*`` headers."""
        return rate_headers(self.reservation.account, self.now())


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

    async def enter(
        self,
        terms: Terms,
        entry: ModelEntry,
        request: EngineRequest,
        *,
        request_id: str,
        charge_id: str = "",
    ) -> Admitted:
        """Reserve the most a request can use and wait for its turn; ``leave`` ends both.

        Args:
            terms: Of its key with this model.
            entry: The model.
            request: As checked.
            request_id: Of the log.
            charge_id: Of its charge; empty: one of its own.

        Raises:
            LimitExceeded: It would pass a limit; nothing was reserved.
        """
        opened = self._opened(terms, entry, request, request_id, charge_id)
        admitted = await self._reserve(terms, entry, request, opened)
        claim = Claim(
            terms.payer.project_id, terms.weight, terms.priority, request.num_tokens_estimate
        )
        # Rounded up: no engine stands idle because gateways are many.
        capacity = -(-entry.capacity // max(self._num_gateways(), 1))
        queue = admitted.queue = self._queues.of(entry.engine_root, capacity)
        admitted.ticket = queue.try_enter(claim)
        if admitted.ticket is None:
            try:
                admitted.ticket = await queue.enter(claim)
            except BaseException:
                self._spender.drop(admitted.reservation)
                raise
        return admitted

    def leave(self, admitted: Admitted) -> None:
        """Charge what was delivered and let the next one through."""
        if admitted.queue is not None and admitted.ticket is not None:
            if admitted.quantity is not None:
                admitted.ticket.num_tokens = admitted.quantity.num_tokens
            admitted.queue.leave(admitted.ticket)
        self._settle(admitted)

    def _opened(
        self,
        terms: Terms,
        entry: ModelEntry,
        request: EngineRequest,
        request_id: str,
        charge_id: str,
    ) -> Opened:
        return Opened(
            id=charge_id or self._spender.next_id(),
            at=self._clock.now(),
            payer=terms.payer,
            request_id=request_id,
            endpoint=request.path,
            model_id=entry.root,
            tier=terms.price.tier,
            price_id=terms.price.id,
            input_tokens=_guess(request),
            base_model_id=entry.base or "",
        )

    async def _reserve(
        self, terms: Terms, entry: ModelEntry, request: EngineRequest, opened: Opened
    ) -> Admitted:
        spender, now = self._spender, opened.at
        account, price = spender.account(terms.caps, now), terms.price
        most = _most(terms, quick_bound(request, entry), now) if terms.caps else _UNCAPPED
        reservation = spender.try_reserve(opened, price, account, most)
        if reservation is not None:
            return Admitted(reservation, entry, request, self._clock.now)
        try:
            reservation = await self._reserve_or_wait(terms, entry, request, opened, most)
        except LimitExceeded as error:
            error.context["headers"] = rate_headers(account, self._clock.now())
            raise
        return Admitted(reservation, entry, request, self._clock.now)

    async def _reserve_or_wait(
        self,
        terms: Terms,
        entry: ModelEntry,
        request: EngineRequest,
        opened: Opened,
        most: Amounts,
    ) -> Reservation:
        """Reserve what is not at hand.

        Raises:
            LimitExceeded: It cannot be had.
        """
        spender, price = self._spender, terms.price
        account = spender.account(terms.caps, opened.at)
        try:
            return await spender.reserve(
                opened, price, account, most, is_patient=not terms.counts_tokens
            )
        except LimitExceeded as error:
            # Bytes say too much may be used. Near a limit it is worth counting tokens.
            if error.context["metric"] not in COUNTED_IN_TOKENS:
                raise
        bound = await asyncio.to_thread(exact_bound, request, entry)
        return await spender.reserve(opened, price, account, _most(terms, bound, opened.at))

    def _settle(self, admitted: Admitted) -> None:
        """Charge what was delivered: by the engine's own count, else by what was seen to go out."""
        reservation, quantity = admitted.reservation, admitted.quantity
        if quantity is not None:
            self._spender.settle(reservation, quantity, Exactness.EXACT)
        elif (
            admitted.uncounted is not None or admitted.is_given_up or reservation.count_delivered()
        ):
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
        num_input, num_output = await asyncio.to_thread(_estimate, admitted)
        quantity = Quantity(num_requests=1, input_tokens=num_input, output_tokens=num_output)
        self._spender.settle(reservation, quantity, Exactness.ESTIMATED)


def rate_headers(account: Account, now: float) -> list[tuple[bytes, bytes]]:
    """Return the ``x-ratelimit-*`` headers: of the limits that are nearest."""
    headers: list[tuple[bytes, bytes]] = []
    reset = b""
    for names, slices in zip(_RATE_HEADERS, account.by_minute, strict=True):
        if not slices:
            continue
        nearest, left = slices[0], slices[0].free + slices[0].remaining
        for piece in slices[1:]:
            if (its := piece.free + piece.remaining) < left:
                nearest, left = piece, its
        if not reset:
            # Requests and tokens are counted in the same minutes.
            reset = duration(max((nearest.window.end or 0.0) - now, 0.0)).encode()
        values = (b"%d" % nearest.cap.amount, b"%d" % left, reset)
        headers.extend(zip(names, values, strict=True))
    return headers


def _estimate(admitted: Admitted) -> tuple[int, int]:
    """Return the tokens in and out of a request whose engine did not count them."""
    entry = admitted.entry
    num_input = exact_bound(admitted.request, entry).input_tokens
    if admitted.uncounted is None:
        return num_input, admitted.reservation.count_delivered()
    return num_input, count_answer(admitted.uncounted, entry.facts.tokenizer_path)


def _most(terms: Terms, bound: TokenBound, now: float) -> Amounts:
    """Return what a request of this size can take at most."""
    cost = terms.price.highest_cost(
        input_tokens=bound.input_tokens, output_tokens=bound.output_tokens, at=now
    )
    return Amounts(1, bound.input_tokens + bound.output_tokens, to_nanos(cost), 1)


def quantity_of(usage: Usage) -> Quantity:
    """Return an engine's usage as the ledger counts it."""
    details = usage.prompt_tokens_details
    return Quantity(
        num_requests=1,
        input_tokens=usage.prompt_tokens,
        cached_tokens=min(details.cached_tokens or 0, usage.prompt_tokens) if details else 0,
        output_tokens=usage.completion_tokens or 0,
    )


def _guess(request: EngineRequest) -> int:
    return sum(map(len, request.texts)) // _BYTES_PER_TOKEN + sum(request.prompt_lengths)


def duration(seconds: float) -> str:
    """Return seconds as the OpenAI API writes them: ``12ms``, ``6.5s``, ``1m0s``."""
    if seconds < 1:
        return f"{round(seconds * 1000)}ms"
    minutes, rest = divmod(seconds, 60)
    text = f"{rest:.3f}".rstrip("0").rstrip(".")
    return f"{int(minutes)}m{text}s" if minutes else f"{text}s"
