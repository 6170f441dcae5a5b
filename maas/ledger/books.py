"""The ledger in the store: counters that grants are taken from, and the journal of charges.

Three transactions carry everything:

- ``grant`` moves what is unused to a spender's grant, never past the cap.
- ``post`` writes charges to the journal, counts them as used, takes them and what is given back
  off the grants, and moves the spender's position: all or nothing, and once.
- ``close`` posts what a dead spender's log still says and dissolves its grants.

So at every moment, for every counter: used + leased <= cap (unless the cap was lowered), leased is
the sum of the grants, and used of a journaled metric is the sum of the journal in its window.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Select,
    Table,
    bindparam,
    delete,
    func,
    or_,
    select,
    type_coerce,
    update,
)
from sqlalchemy.orm import Session

from maas.core.clock import Clock
from maas.core.errors import Conflict
from maas.ledger.caps import (
    MINUTE_S,
    Cap,
    Metric,
    Window,
    counter_key,
    subjects_of,
    window_of,
)
from maas.ledger.entries import Entry, Payer
from maas.ledger.wal import Position
from maas.store.database import Database
from maas.store.ledger_tables import CounterRow, GrantRow, JournalRow, SpenderRow
from maas.store.money import to_nanos

_COLUMNS = {
    "organization": JournalRow.organization_id,
    "project": JournalRow.project_id,
    "key": JournalRow.key_id,
}
# A slice is this share of what is left: near the end slices are small, so that little of a cap
# lies idle with a spender that does not need it.
SLICE_SHARE = 4
_JOURNAL_COLUMNS = tuple(str(item.name) for item in JournalRow.__table__.columns)
_TAKE_OFF_GRANT = (
    update(cast("Table", GrantRow.__table__))
    .where(GrantRow.counter_key == bindparam("of"), GrantRow.spender_id == bindparam("spender"))
    .values(amount=GrantRow.amount - bindparam("less"))
)
_MOVE_COUNTER = (
    update(cast("Table", CounterRow.__table__))
    .where(CounterRow.key == bindparam("of"))
    .values(
        used=CounterRow.used + bindparam("more"),
        leased=CounterRow.leased - bindparam("released"),
    )
)
_JOURNALED = (Metric.TOKENS_PER_DAY, Metric.MONTHLY_BUDGET)
# Databases bound the parameters of a statement.
_MAX_KEYS = 5000
# A busy half second is thousands of charges: as rows all at once they would be a peak of memory.
_MAX_ROWS = 256
# Spenders say every few seconds that they live.
SILENT_S = 60.0
_KEEP_COUNTERS_S = 3600.0


@dataclass(frozen=True)
class Want:
    """What a spender asks for.

    Attributes:
        need: Less than this is of no use now.
        wish: What could be used at once.
        is_exact: Nothing beyond that is of use: it is held for long.
    """

    cap: Cap
    window: Window
    need: int
    wish: int
    is_exact: bool = False


@dataclass(frozen=True)
class Granted:
    """What it got.

    Attributes:
        amount: Added to its grant; 0 where ``need`` cannot be had.
        remaining: Neither used nor held by anybody, after this grant.
        leased: Held by all spenders that live, after this grant.
    """

    amount: int
    remaining: int
    leased: int


@dataclass
class Posting:
    """What one transaction of a spender writes.

    Attributes:
        entries: New charges.
        used: Counted as used, by counter; of metrics that the journal does not tell.
        released: Taken off the spender's grants, by counter: used up or given back.
    """

    entries: Sequence[Entry] = ()
    used: Mapping[str, int] = field(default_factory=dict[str, int])
    released: Mapping[str, int] = field(default_factory=dict[str, int])


class Books:
    """Reads and writes the ledger."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    def open(self, spender_id: str) -> None:
        """Register a spender, before its first grant."""
        with self._database.write(bump_revision=False) as session:
            session.add(SpenderRow(id=spender_id, segment=0, position=0, seen_at=self._clock.now()))

    def grant(self, spender_id: str, wants: Sequence[Want]) -> list[Granted]:
        """Grant what can be had of each, in their order."""
        with self._database.write(bump_revision=False) as session:
            keys = [want.window.key for want in wants]
            found = session.scalars(select(CounterRow).where(CounterRow.key.in_(keys)))
            counters, now = {counter.key: counter for counter in found}, self._clock.now()
            granted: list[Granted] = []
            for want in wants:
                counter = counters.get(want.window.key)
                if counter is None:
                    counter = _new_counter(session, want.cap, want.window)
                    counters[counter.key] = counter
                granted.append(_grant(session, spender_id, want, counter, now))
            return granted

    def post(self, spender_id: str, posting: Posting, *, since: Position, until: Position) -> None:
        """Write a posting; doing so twice, after an answer that got lost, changes nothing.

        Args:
            spender_id: Whose.
            posting: What to write.
            since: The spender's position before it.
            until: The position after it, which is another one.

        Raises:
            Conflict: Somebody else closed this spender's books.
        """
        with self._database.write(bump_revision=False) as session:
            spender = session.get(SpenderRow, spender_id)
            position = spender and Position(spender.segment, spender.position)
            if spender is None or position not in {since, until}:
                raise Conflict(f"the books of {spender_id} are closed")
            if position == until:
                return
            self._apply(session, spender_id, posting)
            spender.segment, spender.position = until.segment, until.offset
            spender.seen_at = self._clock.now()

    def close(self, spender_id: str, entries: Sequence[Entry]) -> bool:
        """Post what is left of a spender and dissolve its grants.

        What was granted of a metric that the journal does not tell counts as used: nobody knows.

        Returns:
            False where its books were closed before: nothing was written.
        """
        with self._database.write(bump_revision=False) as session:
            if session.get(SpenderRow, spender_id) is None:
                return False
            grants = session.scalars(
                select(GrantRow)
                .where(GrantRow.spender_id == spender_id)
                .order_by(GrantRow.counter_key)
            ).all()
            lost = {
                grant.counter_key: grant.amount
                for grant in grants
                if grant.counter_key.startswith(
                    (Metric.REQUESTS_PER_MINUTE.value, Metric.TOKENS_PER_MINUTE.value)
                )
            }
            released = {grant.counter_key: grant.amount for grant in grants}
            self._apply(session, spender_id, Posting(entries, lost, released))
            session.execute(delete(GrantRow).where(GrantRow.spender_id == spender_id))
            session.execute(delete(SpenderRow).where(SpenderRow.id == spender_id))
        return True

    def position_of(self, spender_id: str) -> Position | None:
        """Return how far a spender's log is in the journal; none where its books are closed."""
        with self._database.read() as session:
            row = session.get(SpenderRow, spender_id)
            return None if row is None else Position(row.segment, row.position)

    def claimed(self, keys: Collection[str]) -> dict[str, int]:
        """Return what is used or held of counters, by their keys."""
        found: dict[str, int] = {}
        with self._database.read() as session:
            for portion in _portions(keys):
                rows = session.execute(
                    select(CounterRow.key, CounterRow.used + CounterRow.leased).where(
                        CounterRow.key.in_(portion)
                    )
                )
                found.update((key, int(claimed)) for key, claimed in rows)
        return found

    def used(self, keys: Collection[str]) -> dict[str, int]:
        """Return what is used of counters, by their keys; of what nobody holds any more."""
        with self._database.read() as session:
            rows = session.execute(
                select(CounterRow.key, CounterRow.used).where(CounterRow.key.in_([*keys]))
            )
            return {key: int(used) for key, used in rows}

    def charge(self, entries: Sequence[Entry]) -> int:
        """Write charges that no spender reserved (training, storage); each once, by its id.

        Returns:
            How many were new.
        """
        with self._database.write(bump_revision=False) as session:
            known = _known(session, [entry.id for entry in entries])
            new = [entry for entry in entries if entry.id not in known]
            self._apply(session, "", Posting(new))
        return len(new)

    def touch(self, spender_id: str) -> None:
        """Say that a spender lives."""
        with self._database.write(bump_revision=False) as session:
            session.execute(
                update(SpenderRow)
                .where(SpenderRow.id == spender_id)
                .values(seen_at=self._clock.now())
            )

    def sweep(self) -> None:
        """Forget what nobody needs any more.

        That is counters whose window is long over, and the open requests of spenders that were
        not heard of for a while: their machine may never come back to close its books. Money that
        such a spender holds stays held until somebody has its log.
        """
        with self._database.write(bump_revision=False) as session:
            silent = session.scalars(
                select(GrantRow)
                .join(SpenderRow, SpenderRow.id == GrantRow.spender_id)
                .where(
                    SpenderRow.seen_at < self._clock.now() - SILENT_S,
                    GrantRow.counter_key.startswith(Metric.CONCURRENT_REQUESTS.value),
                    GrantRow.amount > 0,
                )
            ).all()
            for grant in silent:
                counter = session.get_one(CounterRow, grant.counter_key)
                counter.leased -= grant.amount
                grant.amount = 0
            # A grant of nothing is none; every minute of every limit leaves one.
            session.execute(delete(GrantRow).where(GrantRow.amount == 0))
            session.execute(
                delete(CounterRow).where(
                    CounterRow.window_end < self._clock.now() - _KEEP_COUNTERS_S,
                    CounterRow.leased == 0,
                )
            )

    def _apply(self, session: Session, spender_id: str, posting: Posting) -> None:
        """Write charges, and move counters and grants by them."""
        entries = _new_of(session, posting.entries)
        if entries:
            _insert(session, entries)
        used = _journaled_amounts(entries)
        for key, amount in posting.used.items():
            used[key] = used.get(key, 0) + amount
        released = _released(session, spender_id, posting.released)
        if released:
            changes = [
                {"of": key, "spender": spender_id, "less": amount}
                for key, amount in released.items()
            ]
            session.execute(_TAKE_OFF_GRANT, changes)
        keys = {*used, *released}
        if keys:
            # A counter that nobody has begun is not there, and none is changed.
            changes = [
                {"of": key, "more": used.get(key, 0), "released": released.get(key, 0)}
                for key in sorted(keys)
            ]
            session.execute(_MOVE_COUNTER, changes)


def _new_of(session: Session, entries: Sequence[Entry]) -> Sequence[Entry]:
    """Return entries without those that another spender, or this one, has made before."""
    shared = [entry.id for entry in entries if entry.may_be_known]
    if not shared:
        return entries
    known = _known(session, shared)
    new: list[Entry] = []
    for entry in entries:
        if entry.id not in known:
            new.append(entry)
        if entry.may_be_known:
            known.add(entry.id)
    return new


def _known(session: Session, ids: Collection[str]) -> set[str]:
    """Return which of these charges are in the journal."""
    known: set[str] = set()
    for portion in _portions(ids):
        known.update(session.scalars(select(JournalRow.id).where(JournalRow.id.in_(portion))))
    return known


def _released(session: Session, spender_id: str, wanted: Mapping[str, int]) -> dict[str, int]:
    """Return what comes off a spender's grants: never more than they hold.

    What was taken from one meanwhile is gone (``Books.sweep``).
    """
    released: dict[str, int] = {}
    for keys in _portions(wanted):
        held = session.execute(
            select(GrantRow.counter_key, GrantRow.amount).where(
                GrantRow.spender_id == spender_id, GrantRow.counter_key.in_(keys)
            )
        )
        released.update((key, min(wanted[key], amount)) for key, amount in held)
    return released


def _grant(
    session: Session, spender_id: str, want: Want, counter: CounterRow, now: float
) -> Granted:
    available = max(want.cap.amount - counter.used - counter.leased, 0)
    share = 0 if want.is_exact else available // SLICE_SHARE
    wish = max(want.wish, want.need, share)
    amount = min(wish, available) if available >= want.need else 0
    if amount:
        counter.leased += amount
        grant = session.get(GrantRow, (counter.key, spender_id))
        if grant is None:
            session.add(GrantRow(counter_key=counter.key, spender_id=spender_id, amount=amount))
            session.flush()
        else:
            grant.amount += amount
        return Granted(amount, available - amount, counter.leased)
    # What the dead hold will not come back while anybody waits for it.
    live = (
        select(func.coalesce(func.sum(GrantRow.amount), 0))
        .join(SpenderRow, SpenderRow.id == GrantRow.spender_id)
        .where(GrantRow.counter_key == counter.key, SpenderRow.seen_at >= now - SILENT_S)
    )
    return Granted(0, available, int(session.scalar(live) or 0))


def _new_counter(session: Session, cap: Cap, window: Window) -> CounterRow:
    # Used before anybody capped it; whatever is posted later adds itself.
    used = session.scalar(_journaled(cap, window)) if cap.metric.is_journaled else 0
    counter = CounterRow(key=window.key, window_end=window.end, used=int(used or 0), leased=0)
    session.add(counter)
    return counter


def _journaled(cap: Cap, window: Window) -> Select[int]:
    """Return what the journal says of a cap's window, in the cap's units."""
    tokens = JournalRow.input_tokens + JournalRow.output_tokens + JournalRow.training_tokens
    amount = JournalRow.amount if cap.metric is Metric.MONTHLY_BUDGET else tokens
    query = select(func.coalesce(func.sum(type_coerce(amount, BigInteger)), 0)).where(
        JournalRow.at >= window.start, JournalRow.at < (window.end or 0)
    )
    for part in cap.subject.split("/", 1):
        kind, _, value = part.partition(":")
        query = query.where(is_of_model(value) if kind == "model" else _COLUMNS[kind] == value)
    return query


def is_of_model(model_id: str) -> ColumnElement[bool]:
    """Return the condition on a row of the journal that it counts against a model's limits."""
    return or_(JournalRow.model_id == model_id, JournalRow.base_model_id == model_id)


def _journaled_amounts(entries: Sequence[Entry]) -> dict[str, int]:
    """Return how much entries count in each counter, were all counters there."""
    sums: dict[tuple[Payer, str, str, int], list[int]] = {}
    for entry in entries:
        minute = int(entry.at // MINUTE_S)
        group = (entry.payer, entry.model_id, entry.base_model_id, minute)
        total = sums.setdefault(group, [0, 0])
        total[0] += entry.num_tokens
        total[1] += to_nanos(entry.amount)
    amounts: dict[str, int] = {}
    for (payer, model_id, base_model_id, minute), total in sums.items():
        subjects = subjects_of(
            organization_id=payer.organization_id,
            project_id=payer.project_id,
            key_id=payer.key_id,
            model=model_id,
            base=base_model_id,
        )
        for metric, amount in zip(_JOURNALED, total, strict=True):
            _, _, label = window_of(metric, minute)
            for subject in subjects:
                key = counter_key(metric, subject, label)
                amounts[key] = amounts.get(key, 0) + amount
    return amounts


def _portions(keys: Collection[str]) -> Iterator[list[str]]:
    """Yield keys in portions that one statement takes."""
    ordered = sorted(keys)
    for start in range(0, len(ordered), _MAX_KEYS):
        yield ordered[start : start + _MAX_KEYS]


def _insert(session: Session, entries: Sequence[Entry]) -> None:
    """Write charges past SQLAlchemy, which would take longer over a row than the database does."""
    mark = "?" if session.get_bind().dialect.paramstyle == "qmark" else "%s"
    names = ", ".join(_JOURNAL_COLUMNS)
    marks = ", ".join([mark] * len(_JOURNAL_COLUMNS))
    statement = f"INSERT INTO {JournalRow.__tablename__} ({names}) VALUES ({marks})"  # noqa: S608 - our own names
    connection = session.connection()
    for start in range(0, len(entries), _MAX_ROWS):
        portion = entries[start : start + _MAX_ROWS]
        connection.exec_driver_sql(statement, [_row_of(entry) for entry in portion])


def _row_of(entry: Entry) -> tuple[str | int | float, ...]:
    """Return a row in the order of the columns."""
    payer = entry.payer
    return (
        entry.id,
        entry.at,
        payer.organization_id,
        payer.project_id,
        payer.key_id,
        entry.request_id,
        entry.endpoint,
        entry.model_id,
        entry.base_model_id,
        entry.tier,
        entry.num_requests,
        entry.input_tokens,
        entry.cached_tokens,
        entry.output_tokens,
        entry.training_tokens,
        entry.gpu_milliseconds,
        entry.storage_mib_hours,
        entry.export_milliseconds,
        entry.price_id,
        entry.currency,
        to_nanos(entry.amount),
        entry.exactness.value,
    )
