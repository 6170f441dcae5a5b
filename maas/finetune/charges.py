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

from maas.core.clock import Clock
from maas.ledger.books import Books
from maas.ledger.entries import Entry, Payer
from maas.ledger.holds import Holds, Work
from maas.ledger.prices import Quantity
from maas.ledger.tariff import DEFAULT_TIER, Tariff
from maas.store.database import Database
from maas.store.job_records import Job, JobChange, JobStatus
from maas.store.jobs import JobRepository

ENDPOINT = "/v1/fine_tuning/jobs"


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
        self._holds = Holds(database, books)
        self._tariff = tariff

    def quote(self, job: Job, num_tokens: int, *, seconds: float | None = None) -> Quote:
        """Return what training so many tokens costs now, with what it may take."""
        price, now = (
            self._tariff.in_force().price_of(job.base_model_id, DEFAULT_TIER),
            self._clock.now(),
        )
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
        with self._database.together():
            self._jobs.write(job.id, job.attempt)
            if self._books.position_of(_spender_of(job)) is not None:
                return
            self._jobs.write(job.id, job.attempt, JobChange(estimate=quote.plain()))
            self._holds.hold(
                _spender_of(job),
                self._payer(job),
                job.base_model_id,
                cost=quote.cost,
                at=quote.at,
                what="training",
            )

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
        # Never more than was held: what a killed run trained twice is not the user's to pay.
        num_tokens = min(job.trained_tokens or 0, int(quoted["trained_tokens"]))
        return Work(job.id, job.request_id, ENDPOINT, job.base_model_id).charge(
            self._payer(job),
            Quantity(num_requests=1, training_tokens=num_tokens),
            self._tariff.by_id(quoted["price_id"]),
            float(quoted["priced_at"]),
        )

    def _payer(self, job: Job) -> Payer:
        return self._holds.payer_of(job.project_id, job.key_id)


def _spender_of(job: Job) -> str:
    return f"job:{job.id}"
