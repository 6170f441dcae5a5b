"""Says once when a budget is used by half, by four fifths, and whole."""

from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from maas.core.clock import Clock
from maas.ledger.caps import Cap, Metric, caps_of, subject_of
from maas.store.database import Database
from maas.store.ledger_tables import CounterRow
from maas.store.limits import record_of
from maas.store.money import from_nanos
from maas.store.organizations import DEFAULT, find_or_add
from maas.store.records import Limit, LimitScope
from maas.store.tenancy_tables import ApiKeyRow, LimitRow, ProjectRow
from maas.store.webhook_tables import BudgetAlertRow
from maas.store.webhooks import BUDGET_EVENT, enqueue

PERCENTS = (50, 80, 100)


@dataclass(frozen=True)
class BudgetAlerts:
    """Compares budgets with what was spent.

    Attributes:
        database: The store.
        clock: For the month.
    """

    database: Database
    clock: Clock

    def check(self) -> int:
        """Write an event for each threshold that was passed since the last time.

        Returns:
            How many thresholds that were.
        """
        now = self.clock.now()
        with self.database.read() as session:
            rows = session.scalars(select(LimitRow).where(LimitRow.monthly_budget.is_not(None)))
            budgets = [(limit := record_of(row), _cap_of(limit)) for row in rows]
            # The counter, and not the journal: that has a row for every request of the month.
            used = {
                cap.window(now).key: session.get(CounterRow, cap.window(now).key)
                for _, cap in budgets
            }
        return sum(
            self._check(limit, cap, counter.used)
            for limit, cap in budgets
            if (counter := used[cap.window(now).key]) is not None and counter.used
        )

    def _check(self, limit: Limit, cap: Cap, used: int) -> int:
        passed = [percent for percent in PERCENTS if used * 100 >= cap.amount * percent]
        if not passed:
            return 0
        now = self.clock.now()
        month = cap.window(now).key
        with self.database.write(bump_revision=False) as session:
            new = [p for p in passed if session.get(BudgetAlertRow, (limit.id, month, p)) is None]
            for percent in new:
                session.add(BudgetAlertRow(limit_id=limit.id, month=month, percent=percent, at=now))
                facts = {
                    "limit": cap.name,
                    "limit_id": limit.id,
                    "percent": percent,
                    "budget": f"{from_nanos(cap.amount):f}",
                    "spent": f"{from_nanos(used):f}",
                }
                hearer = _organization_of(session, limit, now)
                enqueue(session, hearer, BUDGET_EVENT, facts, now=now)
        return len(new)


def _cap_of(limit: Limit) -> Cap:
    subject = subject_of(limit.scope.value, limit.scope_id, limit.model)
    (cap,) = (cap for cap in caps_of(limit, subject) if cap.metric is Metric.MONTHLY_BUDGET)
    return cap


def _organization_of(session: Session, limit: Limit, now: float) -> str:
    """Return who hears of a limit.

    What all tenants together spend on a model is nobody's business but the platform's own.
    """
    match limit.scope:
        case LimitScope.ORGANIZATION:
            return limit.scope_id
        case LimitScope.MODEL:
            return find_or_add(session, DEFAULT, now).id
        case LimitScope.PROJECT:
            project_id = limit.scope_id
        case LimitScope.KEY:
            project_id = session.get_one(ApiKeyRow, limit.scope_id).project_id
    return session.get_one(ProjectRow, project_id).organization_id
