"""What was used and what it cost, read from the journal in buckets of time."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal

from sqlalchemy import BigInteger, RowMapping, case, cast, func, literal, select, type_coerce
from sqlalchemy.orm import Session

from maas.core.clock import Clock
from maas.ledger.books import is_of_model
from maas.ledger.caps import Cap, Metric, subject_of
from maas.store.database import Database
from maas.store.ledger_tables import JournalRow
from maas.store.money import from_nanos
from maas.store.records import LimitScope
from maas.store.tenancy_tables import ApiKeyRow

WIDTHS = {"1m": 60, "1h": 3600, "1d": 86_400}
COUNTS = (
    "num_requests",
    "input_tokens",
    "cached_tokens",
    "output_tokens",
    "training_tokens",
    "gpu_milliseconds",
    "storage_mib_hours",
    "export_milliseconds",
)
GROUPS = {
    "organization_id": JournalRow.organization_id,
    "project_id": JournalRow.project_id,
    "api_key_id": JournalRow.key_id,
    "model": JournalRow.model_id,
    "endpoint": JournalRow.endpoint,
    "service_tier": JournalRow.tier,
    "exactness": JournalRow.exactness,
    # A key's, where it was made for a user.
    "user_id": ApiKeyRow.user_id,
    "batch": case((JournalRow.tier == "batch", "true"), else_="false"),
}

_COLUMN_OF = {
    LimitScope.ORGANIZATION: "organization_id",
    LimitScope.PROJECT: "project_id",
    LimitScope.KEY: "api_key_id",
}


@dataclass(frozen=True)
class UsageQuery:
    """What is asked.

    Attributes:
        start: Epoch seconds, inclusive.
        end: Epoch seconds, exclusive.
        width_s: Of a bucket; buckets begin at multiples of it.
        where: Only these values of a column, by name in ``GROUPS``.
        group_by: Names in ``GROUPS``.
        by_currency: Whether amounts are told apart by their currency, and with them the rows.
    """

    start: float
    end: float
    width_s: int = 86_400
    where: Mapping[str, Sequence[str]] = field(default_factory=dict[str, Sequence[str]])
    group_by: Sequence[str] = ()
    by_currency: bool = True


@dataclass(frozen=True)
class UsageRow:
    """Sums over one group in one bucket.

    Attributes:
        start: Of the bucket, epoch seconds.
        groups: Values of the columns grouped by.
        counts: Sums by name in ``COUNTS``.
    """

    start: int
    groups: Mapping[str, str]
    counts: Mapping[str, int]
    amount: Decimal
    currency: str


class UsageReader:
    """Reads the journal."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    def spent_this_month(
        self, scope: LimitScope, scope_id: str, model: str | None = None
    ) -> Decimal:
        """Return what an organisation, project, key or model cost since the month began (UTC).

        A model with all that was tuned from it, as its limits count it.
        """
        cap = Cap(Metric.MONTHLY_BUDGET, subject_of(scope.value, scope_id), 0)
        window = cap.window(self._clock.now())
        spender = (
            is_of_model(scope_id)
            if scope is LimitScope.MODEL
            else GROUPS[_COLUMN_OF[scope]] == scope_id
        )
        total = func.sum(type_coerce(JournalRow.amount, BigInteger))
        with self._database.read() as session:
            statement = select(total).where(JournalRow.at >= window.start, spender)
            if model is not None:
                statement = statement.where(is_of_model(model))
            nanos = session.scalar(statement)
        return from_nanos(int(nanos or 0))

    def read(self, query: UsageQuery) -> list[UsageRow]:
        """Return sums by bucket and group, oldest bucket first."""
        with self._database.read() as session:
            return _read(session, query)


def _read(session: Session, query: UsageQuery) -> list[UsageRow]:
    width = literal(query.width_s)
    at = cast(func.floor(JournalRow.at / width), BigInteger)
    bucket = (at * width).label("bucket")
    groups = [GROUPS[name].label(name) for name in query.group_by]
    sums = [func.sum(getattr(JournalRow, name)).label(name) for name in COUNTS]
    amount = func.sum(type_coerce(JournalRow.amount, BigInteger)).label("amount")
    if query.by_currency:
        currency, currencies = JournalRow.currency.label("currency"), [JournalRow.currency]
    else:
        currency, currencies = func.max(JournalRow.currency).label("currency"), []
    statement = (
        select(bucket, *groups, *sums, amount, currency)
        .where(JournalRow.at >= query.start, JournalRow.at < query.end)
        .group_by(bucket, *groups, *currencies)
        .order_by(bucket, *groups)
    )
    if "user_id" in {*query.group_by, *query.where}:
        statement = statement.join(ApiKeyRow, ApiKeyRow.id == JournalRow.key_id, isouter=True)
    for name, values in query.where.items():
        statement = statement.where(GROUPS[name].in_(values))
    return [_row_of(row, query) for row in session.execute(statement).mappings()]


def _row_of(row: RowMapping, query: UsageQuery) -> UsageRow:
    return UsageRow(
        start=int(row["bucket"]),
        groups={name: row[name] for name in query.group_by},
        counts={name: int(row[name]) for name in COUNTS},
        amount=from_nanos(int(row["amount"])),
        currency=row["currency"],
    )
