"""A gateway's purse: slices of caps leased from the store and spent in memory.

A request reserves the most it can use of every cap it counts against, all or nothing, and settles
what it did use. Both are arithmetic on numbers held here; the store is asked only when a slice
runs low, by one task for all who wait. What is settled goes to the write-ahead log at once and to
the journal twice a second.
"""

import asyncio
import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass

from maas.core.clock import Clock
from maas.core.errors import (
    BudgetExceeded,
    Conflict,
    DiskFull,
    LimitExceeded,
    MaasError,
    Unavailable,
)
from maas.ledger.books import Books, Posting, Want
from maas.ledger.caps import MINUTE_S, Amounts, Cap, Metric
from maas.ledger.entries import Dropped, Entry, Exactness, GaveBack, Opened, Progressed, Record
from maas.ledger.prices import Price, Quantity
from maas.ledger.reservation import Reservation, entry_of
from maas.ledger.slices import BUDGET_WAIT_S, IDLE_S, Account, Slice
from maas.ledger.wal import Position, WriteAheadLog
from maas.store.money import to_nanos

log = logging.getLogger(__name__)

FLUSH_EVERY_S = 0.5
_ASK_AGAIN_S = 0.25
_CONCURRENCY_RETRY_S = 1.0
# Longer than an account, which holds its slices for a minute.
_FORGET_S = 60.0
_NOTHING = Amounts()
# What answers tell their callers of.
_TOLD = (Metric.REQUESTS_PER_MINUTE, Metric.TOKENS_PER_MINUTE)


@dataclass(frozen=True)
class _Batch:
    """A posting under way; tried again as it is until the store has it."""

    posting: Posting
    since: Position
    until: Position


class Spender:
    """Admits and settles requests. Lives on one event loop.

    Args:
        books: The ledger in the store.
        wal: This spender's log.
        clock: For windows.
        wait_s: How long a request waits at most for what others hold and may not use.
    """

    def __init__(
        self, books: Books, wal: WriteAheadLog, clock: Clock, *, wait_s: float = BUDGET_WAIT_S
    ) -> None:
        self.id = wal.spender_id
        self._books = books
        self._wal = wal
        self._clock = clock
        self._wait_s = wait_s
        self._slices: dict[Cap, Slice] = {}
        # By the identity of the caps, for as long as the minute lasts.
        self._accounts: dict[int, Account] = {}
        self._minute = -1
        self._num_reserved = 0
        self._retired: list[Slice] = []
        self._open: dict[str, Reservation] = {}
        self._entries: list[Entry] = []
        self._posted = wal.position
        self._batch: _Batch | None = None
        self._flushing = asyncio.Lock()
        self._wanted: dict[Slice, list[int]] = {}
        self._is_wanted = asyncio.Event()
        self._asking: list[asyncio.Future[None]] = []
        self._watching: set[asyncio.Future[None]] = set()
        self._tasks: list[asyncio.Task[None]] = []
        self._is_closed = False

    @property
    def num_open(self) -> int:
        """Reservations that are neither settled nor dropped."""
        return len(self._open)

    @property
    def num_unposted(self) -> int:
        """Charges that are in the log and not known to be in the journal."""
        return len(self._entries) + (len(self._batch.posting.entries) if self._batch else 0)

    async def start(self) -> None:
        """Register with the store and begin to post."""
        await asyncio.to_thread(self._books.open, self.id)
        self._tasks = [asyncio.create_task(self._refill()), asyncio.create_task(self._run())]

    async def stop(self) -> None:
        """Post everything and give everything back; what is open stays in the log."""
        tasks, self._tasks = self._tasks, []
        if not tasks:
            return
        self._is_closed = True
        for task in tasks:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        has_posted = await self.flush(is_last=True) and not self._open
        if has_posted:
            try:
                await asyncio.to_thread(self._books.close, self.id, [])
            except MaasError as error:
                log.error("grants are left to be recovered: %s", error.message)
                has_posted = False
        self._wal.close(delete=has_posted)

    def next_id(self) -> str:
        """Return an id for a reservation: this spender's own, and a number."""
        self._num_reserved += 1
        return f"{self.id}-{self._num_reserved}"

    def account(self, caps: tuple[Cap, ...], now: float) -> Account:
        """Return what a request counts against that begins now."""
        minute = int(now // MINUTE_S)
        if minute != self._minute:
            # Every window ends with a minute.
            self._minute = minute
            self._accounts.clear()
        found = self._accounts.get(id(caps))
        if found is None:
            slices = tuple(self._slice(cap, now) for cap in caps)
            requests, tokens = (
                tuple(piece for piece in slices if piece.cap.metric is metric) for metric in _TOLD
            )
            # It holds the caps, so that no others get their identity.
            found = self._accounts[id(caps)] = Account(caps, slices, (requests, tokens))
        return found

    def _slice(self, cap: Cap, now: float) -> Slice:
        piece = self._slices.get(cap)
        if piece is None or piece.has_ended(now):
            if piece is not None:
                self._retired.append(piece)
            piece = self._slices[cap] = Slice(cap, now)
        # Kept for longer than an account.
        piece.used_at = now
        return piece

    async def reserve(
        self,
        opened: Opened,
        price: Price,
        account: Account,
        most: Amounts,
        *,
        is_patient: bool = True,
    ) -> Reservation:
        """Reserve the most of everything, or nothing; the request may be sent once this returns.

        Args:
            opened: What the log says of it.
            price: What it will cost.
            account: What it counts against.
            most: What it may take.
            is_patient: Whether to wait for budget that is held and may come back.

        Raises:
            LimitExceeded: Not all can be had; the message names the limit.
            Unavailable: The store must be asked and does not answer, or the log cannot be written.
        """
        reservation = self.try_reserve(opened, price, account, most)
        if reservation is not None:
            return reservation
        await self._wait_for(account, most, self._wait_s if is_patient else 0.0)
        return self._begin(opened, price, account, most)

    def try_reserve(
        self, opened: Opened, price: Price, account: Account, most: Amounts
    ) -> Reservation | None:
        """Reserve from what is held here; none where the store must be asked.

        Raises:
            Unavailable: This gateway is stopping, or the log cannot be written.
        """
        if self._is_closed:
            raise Unavailable("the ledger of this gateway is closed")
        return self._begin(opened, price, account, most) if self._take(account, most) else None

    def _begin(self, opened: Opened, price: Price, account: Account, most: Amounts) -> Reservation:
        """Log a reservation whose amounts are taken."""
        reservation = Reservation(opened, price, account, most)
        try:
            if opened.id in self._open:
                # Of a charge that several may make: the earlier one is still counted.
                raise Unavailable("an earlier answer to this is being charged; try again")
            self._wal.append(opened)
        except BaseException:
            self._let_go(reservation, _NOTHING)
            raise
        self._open[opened.id] = reservation
        return reservation

    def settle(self, reservation: Reservation, quantity: Quantity, exactness: Exactness) -> Entry:
        """Charge what was delivered and let go of the rest.

        Raises:
            DiskFull: The log cannot be written. The charge is kept and will be posted.
        """
        opened, price = reservation.opened, reservation.price
        amount = reservation.cost(quantity)
        entry = entry_of(opened, price, quantity, amount=amount, exactness=exactness)
        if self._open.pop(opened.id, None) is None:
            raise Conflict(f"{opened.id} was settled before")
        self._entries.append(entry)
        used = Amounts(quantity.num_requests, quantity.num_tokens, to_nanos(amount))
        self._let_go(reservation, used)
        self._wal.append(entry)
        return entry

    def drop(self, reservation: Reservation) -> None:
        """Let go of everything: nothing was delivered."""
        if self._open.pop(reservation.opened.id, None) is not None:
            self._let_go(reservation, _NOTHING)
            self._wal.append(Dropped(reservation.opened.id))

    async def flush(self, *, is_last: bool = False) -> bool:
        """Post what was settled since the last time; say whether everything is posted.

        Args:
            is_last: Give everything back, not only what is idle.
        """
        # One at a time: a batch that is posted twice at once may come second behind the next one.
        async with self._flushing:
            try:
                await self._flush(is_last=is_last)
            except Conflict as error:
                self._is_closed = True
                log.critical("nothing more is admitted here: %s", error.message)
            except MaasError as error:
                log.error("charges wait in the log: %s", error.message)
            return self._batch is None and not self._entries

    async def _flush(self, *, is_last: bool) -> None:
        if self._batch is not None:
            await self._post(self._batch)
        self._log_progress()
        batch = self._next_batch(is_last=is_last)
        if batch is not None:
            await self._post(batch)
        await self._look()

    def _log_progress(self) -> None:
        try:
            for reservation in self._open.values():
                num_delivered = reservation.count_delivered()
                if num_delivered > reservation.num_logged:
                    self._wal.append(Progressed(reservation.opened.id, num_delivered))
                    reservation.num_logged = num_delivered
            if self._wal.is_long:
                self._wal.rotate(self._still_open())
        except DiskFull as error:
            # What is settled can be posted all the same.
            log.error("a kill now would cost the newest progress: %s", error.message)

    def _still_open(self) -> Iterator[Record]:
        for reservation in self._open.values():
            yield reservation.opened
            if reservation.num_logged:
                yield Progressed(reservation.opened.id, reservation.num_logged)

    async def _look(self) -> None:
        """See what others took of the caps that callers are told of."""
        now = self._clock.now()
        pieces = [
            piece
            for piece in self._slices.values()
            if piece.cap.metric in _TOLD and not piece.has_ended(now)
        ]
        if pieces:
            keys = {piece.window.key for piece in pieces}
            before = [(piece.remaining, piece.leased) for piece in pieces]
            claimed = await asyncio.to_thread(self._books.claimed, keys)
            for piece, known in zip(pieces, before, strict=True):
                # A grant that came meanwhile is newer than what was read.
                is_newest = (piece.remaining, piece.leased) == known
                if is_newest and piece.window.key in claimed:
                    piece.remaining = max(piece.cap.amount - claimed[piece.window.key], 0)

    def _next_batch(self, *, is_last: bool) -> _Batch | None:
        pieces = [*self._slices.values(), *self._retired]
        if self._wal.position == self._posted:
            # Nothing was charged. Each posting has a position of its own, those without too.
            if not any(piece.free or piece.spent or piece.overdrawn for piece in pieces):
                return None
            self._wal.append(GaveBack())
        used: dict[str, int] = {}
        released: dict[str, int] = {}
        now = self._clock.now()
        for piece in pieces:
            if piece.held or piece.spent:
                piece.used_at = now
            is_idle = is_last or now - piece.used_at > IDLE_S or piece.has_ended(now)
            piece.collect(used, released, gives_back=is_idle)
        self._retired = [piece for piece in self._retired if piece.held]
        self._slices = {
            cap: piece
            for cap, piece in self._slices.items()
            if not piece.is_forgettable or now - piece.used_at <= _FORGET_S
        }
        entries, self._entries = self._entries, []
        if not (entries or used or released):
            return None
        # No await since the entries were taken: they are all before this position.
        self._batch = _Batch(Posting(entries, used, released), self._posted, self._wal.position)
        return self._batch

    async def _post(self, batch: _Batch) -> None:
        await asyncio.to_thread(
            self._books.post, self.id, batch.posting, since=batch.since, until=batch.until
        )
        self._posted, self._batch = batch.until, None
        self._wal.forget_before(batch.until)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(FLUSH_EVERY_S)
            await self.flush()

    def _take(self, account: Account, most: Amounts) -> bool:
        if not account.take(most):
            return False
        for piece in account.slices:
            if piece.free < piece.low and piece.remaining:
                piece.low = 0  # asked once
                self._want(piece, 1)
        return True

    def _let_go(self, reservation: Reservation, used: Amounts) -> None:
        reservation.account.let_go(reservation.most, used)
        for changed in self._watching:
            if not changed.done():
                changed.set_result(None)

    async def _wait_for(self, account: Account, most: Amounts, wait_s: float) -> None:
        """Wait until the most of everything is reserved.

        Raises:
            LimitExceeded: It will not be had.
        """
        loop = asyncio.get_running_loop()
        started = loop.time()
        while True:
            await self._ask(account, most)
            if self._take(account, most):
                return
            waited_s = loop.time() - started
            for piece in account.slices:
                amount = most[piece.unit]
                if amount > piece.free and not piece.may_be_had(
                    amount, waited_s=waited_s, wait_s=wait_s
                ):
                    raise self._refusal(piece, amount)
            # It may come back here, or from another gateway: that one is asked about.
            changed = loop.create_future()
            self._watching.add(changed)
            try:
                await asyncio.wait([changed], timeout=_ASK_AGAIN_S)
            finally:
                self._watching.discard(changed)

    async def _ask(self, account: Account, most: Amounts) -> None:
        for piece in account.slices:
            short = most[piece.unit] - piece.free
            if short > 0:
                piece.used_at = self._clock.now()  # not to be forgotten while it is asked for
                self._want(piece, short)
        answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._asking.append(answered)
        self._is_wanted.set()
        await answered

    def _want(self, piece: Slice, short: int) -> None:
        self._wanted.setdefault(piece, []).append(short)
        self._is_wanted.set()

    async def _refill(self) -> None:
        while True:
            await self._is_wanted.wait()
            self._is_wanted.clear()
            wanted, self._wanted = self._wanted, {}
            asking, self._asking = self._asking, []
            wants = [
                Want(piece.cap, piece.window, need=min(shorts), wish=sum(shorts))
                for piece, shorts in wanted.items()
            ]
            try:
                granted = await asyncio.to_thread(self._books.grant, self.id, wants)
            except MaasError as error:
                log.error("no grant can be had: %s", error.message)
                for waiter in asking:
                    if not waiter.done():
                        waiter.set_exception(Unavailable("limits cannot be checked just now"))
                continue
            for piece, answer in zip(wanted, granted, strict=True):
                piece.free += answer.amount
                piece.low = answer.amount // 4
                piece.remaining, piece.leased = answer.remaining, answer.leased
                if piece.has_ended(self._clock.now()):
                    self._retired.append(piece)
            for waiter in asking:
                if not waiter.done():
                    waiter.set_result(None)

    def _refusal(self, piece: Slice, amount: int) -> LimitExceeded:
        cap, window = piece.cap, piece.window
        kind = BudgetExceeded if cap.metric is Metric.MONTHLY_BUDGET else LimitExceeded
        pause = _CONCURRENCY_RETRY_S if window.end is None else window.end - self._clock.now()
        name = cap.name or f"{cap.metric.value} of {cap.subject}"
        is_too_large = amount > cap.amount
        return kind(
            f"this request may use more than all of the limit {name}; set max_tokens lower"
            if is_too_large and cap.amount
            else f"the limit {name} is reached",
            is_lasting=is_too_large or kind is BudgetExceeded,
            retry_after_s=max(pause, 0.001),
            limit=name,
            metric=cap.metric,
        )
