"""Money held for one piece of work, out of every budget it counts against, until it is over.

The work is a spender of the ledger under a name of its own (``maas.ledger.books``). Closing its
books writes the one charge and gives back what is left; books that are closed stay closed.
"""

from dataclasses import dataclass
from decimal import Decimal

from sqlalchemy import select

from maas.core.errors import BudgetExceeded, MaasError, NotFound, Unavailable
from maas.ledger.books import Books, Want
from maas.ledger.caps import Cap, Metric, caps_of, subject_of, subjects_of
from maas.ledger.entries import Entry, Exactness, Opened, Payer
from maas.ledger.prices import Price, Quantity
from maas.ledger.reservation import entry_of
from maas.ledger.tariff import DEFAULT_TIER
from maas.store import limits
from maas.store.database import Database
from maas.store.money import from_nanos, to_nanos
from maas.store.tenancy_tables import LimitRow, ProjectRow


@dataclass(frozen=True)
class Work:
    """A piece of work that is charged as one.

    Attributes:
        id: Of the job, export or day's storage, and of its charge.
        endpoint: Where it was asked for.
        model_id: Whose price it has.
    """

    id: str
    request_id: str
    endpoint: str
    model_id: str

    def charge(self, payer: Payer, used: Quantity, price: Price, at: float) -> Entry:
        """Return the one charge for it.

        Args:
            payer: On whose account.
            used: What it took.
            price: That was agreed on.
            at: When it was, epoch seconds: decides the window and the off-peak factor.
        """
        opened = Opened(
            id=self.id,
            at=at,
            payer=payer,
            request_id=self.request_id,
            endpoint=self.endpoint,
            model_id=self.model_id,
            tier=DEFAULT_TIER,
            price_id=price.id,
            input_tokens=0,
        )
        amount = price.cost(used, at)
        return entry_of(opened, price, used, amount=amount, exactness=Exactness.EXACT)


class Holds:
    """Holds money for work.

    Args:
        database: The store.
        books: The ledger.
    """

    def __init__(self, database: Database, books: Books) -> None:
        self._database = database
        self._books = books

    def payer_of(self, project_id: str, key_id: str) -> Payer:
        """Return on whose account a key of a project works.

        Raises:
            NotFound: There is no such project.
        """
        with self._database.read() as session:
            project = session.get(ProjectRow, project_id)
            if project is None:
                raise NotFound(f"no project has the id {project_id!r}")
            return Payer(project.organization_id, project_id, key_id)

    def hold(
        self, spender_id: str, payer: Payer, model_id: str, *, cost: Decimal, at: float, what: str
    ) -> None:
        """Open a spender's books and hold what its work can cost.

        Args:
            spender_id: Of this work alone.
            payer: On whose account.
            model_id: Whose budgets count, too.
            cost: The most it can be.
            at: Epoch seconds; decides the budgets' month.
            what: Names the work in messages.

        Raises:
            BudgetExceeded: One has less left; nothing is held.
            Unavailable: It has enough, but others hold it for requests just now.
        """
        with self._database.together():
            self._books.open(spender_id)
            nanos = to_nanos(cost)
            if not nanos:
                return
            wants = [
                Want(cap, cap.window(at), need=nanos, wish=nanos, is_exact=True)
                for cap in self._budgets(payer, model_id)
            ]
            granted = self._books.grant(spender_id, wants)
            used = self._books.used([want.window.key for want in wants])
            for want, got in zip(wants, granted, strict=True):
                if not got.amount:
                    # Rolls all of it back.
                    raise _refusal(want, used.get(want.window.key, 0), what)

    def _budgets(self, payer: Payer, model_id: str) -> list[Cap]:
        subjects = subjects_of(
            organization_id=payer.organization_id,
            project_id=payer.project_id,
            key_id=payer.key_id,
            model=model_id,
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


def _refusal(want: Want, used: int, what: str) -> MaasError:
    left = want.cap.amount - used
    if left >= want.need:
        return Unavailable(f"{want.cap.name}: others hold it for requests just now")
    return BudgetExceeded(
        f"{want.cap.name}: {what} can cost {from_nanos(want.need)} and "
        f"{from_nanos(max(left, 0))} is left",
        limit=want.cap.name,
        is_lasting=True,
    )
