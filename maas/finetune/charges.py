"""What training costs: held before it starts, charged once when it ends.

A job is a spender of the ledger under its own name (``maas.ledger.books``): what it may cost is
granted to it out of every budget it counts against, and closing its books writes the one charge
and gives back what is left. Books that are closed stay closed, so however often a job is killed,
ended or cancelled at once, it is charged once.

Who succeeds or is cancelled pays for the tokens that were trained; who failed pays nothing.
"""

from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from sqlalchemy import select

from maas.core.clock import Clock
from maas.core.errors import BudgetExceeded, MaasError, NotFound, Unavailable
from maas.ledger.books import Books, Want
from maas.ledger.caps import Cap, Metric, caps_of, subject_of, subjects_of
from maas.ledger.entries import Entry, Exactness, Payer
from maas.ledger.prices import Quantity
from maas.ledger.tariff import Tariff
from maas.store import limits
from maas.store.database import Database
from maas.store.job_records import Job, JobChange, JobStatus
from maas.store.jobs import JobRepository
from maas.store.money import from_nanos, to_nanos
from maas.store.tenancy_tables import LimitRow, ProjectRow

ENDPOINT = "/v1/fine_tuning/jobs"
TIER = "default"


@dataclass(frozen=True)
class Quote:
    """What training can cost at most, at the price of the moment it was asked for.

    Attributes:
        at: Epoch seconds; decides the budgets' month and the off-peak factor.
        seconds: What training may take, roughly; none where nobody said.
    """

    num_tokens: int
    price_id: str
    currency: str
    cost: Decimal
    at: float
    seconds: float | None = None

    def plain(self) -> dict[str, Any]:
        """Return it as JSON: ``Job.estimate`` holds it."""
        return {
            "trained_tokens": self.num_tokens,
            "price_id": self.price_id,
            "currency": self.currency,
            "cost": str(self.cost),
            "priced_at": self.at,
            "seconds": self.seconds,
        }


class TrainingLedger:
    """Holds and charges what jobs cost.

    Args:
        database: The store: what must happen together is one transaction of it.
        clock: Decides the window a job counts in: that of its hold.
        books: The ledger.
        tariff: Prices.
    """

    def __init__(self, database: Database, clock: Clock, books: Books, tariff: Tariff) -> None:
        self._database = database
        self._clock = clock
        self._jobs = JobRepository(database, clock)
        self._books = books
        self._tariff = tariff

    def quote(self, job: Job, num_tokens: int, *, seconds: float | None = None) -> Quote:
        """Return what training so many tokens costs now, with what it may take."""
        price, now = self._tariff.in_force().price_of(job.base_model_id, TIER), self._clock.now()
        cost = price.cost(Quantity(training_tokens=num_tokens), now)
        return Quote(num_tokens, price.id, price.currency, cost, now, seconds)

    def hold(self, job: Job, quote: Quote) -> None:
        """Hold what a job can cost of every budget; doing so twice changes nothing.

        What is held and the quote are written together, so that the charge is by the price that
        was held for.

        Raises:
            BudgetExceeded: One has less left; nothing is held.
            Unavailable: It has enough, but others hold it for requests just now.
            Superseded: The job ended, or is another runner's: what it held nobody would give back.
        """
        nanos = to_nanos(quote.cost)
        with self._database.together():
            self._jobs.write(job.id, job.attempt)
            if self._books.position_of(_spender_of(job)) is not None:
                return
            self._jobs.write(job.id, job.attempt, JobChange(estimate=quote.plain()))
            self._books.open(_spender_of(job))
            if not nanos:
                return
            wants = [
                Want(cap, cap.window(quote.at), need=nanos, wish=nanos, is_exact=True)
                for cap in self._budgets(job)
            ]
            granted = self._books.grant(_spender_of(job), wants)
            used = self._books.used([want.window.key for want in wants])
            for want, got in zip(wants, granted, strict=True):
                if not got.amount:
                    # Rolls all of it back.
                    raise _refusal(want, used.get(want.window.key, 0))

    def settle(self, job: Job) -> bool:
        """Charge a job that is over, once, and give back what it holds.

        Returns:
            False where that was done before, or it never held anything.
        """
        pays = job.status in {JobStatus.SUCCEEDED, JobStatus.CANCELLED}
        entries = [self._entry(job)] if pays and job.trained_tokens else []
        return self._books.close(_spender_of(job), entries)

    def _entry(self, job: Job) -> Entry:
        quoted = dict(job.estimate or {})
        price, at = self._tariff.by_id(quoted["price_id"]), float(quoted["priced_at"])
        # Never more than was held: what a killed run trained twice is not the user's to pay.
        num_tokens = min(job.trained_tokens or 0, int(quoted["trained_tokens"]))
        return Entry(
            id=job.id,
            at=at,
            payer=self._payer(job),
            request_id=job.request_id,
            endpoint=ENDPOINT,
            model_id=job.base_model_id,
            tier=TIER,
            price_id=price.id,
            currency=price.currency,
            amount=price.cost(Quantity(training_tokens=num_tokens), at),
            exactness=Exactness.EXACT,
            num_requests=1,
            training_tokens=num_tokens,
        )

    def _payer(self, job: Job) -> Payer:
        with self._database.read() as session:
            project = session.get(ProjectRow, job.project_id)
            if project is None:
                raise NotFound(f"no project has the id {job.project_id!r}")
            return Payer(project.organization_id, job.project_id, job.key_id)

    def _budgets(self, job: Job) -> list[Cap]:
        payer = self._payer(job)
        subjects = subjects_of(
            organization_id=payer.organization_id,
            project_id=payer.project_id,
            key_id=payer.key_id,
            model=job.base_model_id,
        )
        with self._database.read() as session:
            records = [limits.record_of(row) for row in session.scalars(select(LimitRow))]
        set_for = {
            subject_of(limit.scope.value, limit.scope_id, limit.model): limit for limit in records
        }
        return [
            cap
            for subject in subjects
            if subject in set_for
            for cap in caps_of(set_for[subject], subject)
            if cap.metric is Metric.MONTHLY_BUDGET
        ]


def _refusal(want: Want, used: int) -> MaasError:
    left = want.cap.amount - used
    if left >= want.need:
        return Unavailable(f"{want.cap.name}: others hold it for requests just now")
    return BudgetExceeded(
        f"{want.cap.name}: training can cost {from_nanos(want.need)} and "
        f"{from_nanos(max(left, 0))} is left",
        limit=want.cap.name,
        is_lasting=True,
    )


def _spender_of(job: Job) -> str:
    return f"job:{job.id}"
