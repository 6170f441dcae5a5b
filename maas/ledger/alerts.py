"""Says once when a budget is used by half, by four fifths, and whole."""

from dataclasses import dataclass
from decimal import Decimal

from sqlalchemy import select
from sqlalchemy.orm import Session

from maas.core.clock import Clock
from maas.ledger.caps import Metric, caps_of, subject_of
from maas.ledger.usage import UsageReader
from maas.store.database import Database
from maas.store.limits import record_of
from maas.store.records import Limit, LimitScope
from maas.store.tenancy_tables import ApiKeyRow, LimitRow, OrganizationRow, ProjectRow
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
        with self.database.read() as session:
            rows = session.scalars(select(LimitRow).where(LimitRow.monthly_budget.is_not(None)))
            limits = [record_of(row) for row in rows]
        return sum(self._check(limit) for limit in limits)

    def _check(self, limit: Limit) -> int:
        budget = limit.monthly_budget or Decimal(0)
        spent = UsageReader(self.database, self.clock).spent_this_month(
            limit.scope, limit.scope_id, limit.model
        )
        passed = [percent for percent in PERCENTS if spent * 100 >= budget * percent]
        if not passed or not spent:
            return 0
        subject = subject_of(limit.scope.value, limit.scope_id, limit.model)
        (cap,) = (cap for cap in caps_of(limit, subject) if cap.metric is Metric.MONTHLY_BUDGET)
        month, now = cap.window(self.clock.now()).key, self.clock.now()
        with self.database.write(bump_revision=False) as session:
            new = [p for p in passed if session.get(BudgetAlertRow, (limit.id, month, p)) is None]
            for percent in new:
                session.add(BudgetAlertRow(limit_id=limit.id, month=month, percent=percent, at=now))
                facts = {
                    "limit": cap.name,
                    "limit_id": limit.id,
                    "percent": percent,
                    "budget": f"{budget:f}",
                    "spent": f"{spent:f}",
                }
                for organization_id in _organizations_of(session, limit):
                    enqueue(session, organization_id, BUDGET_EVENT, facts, now=now)
        return len(new)


def _organizations_of(session: Session, limit: Limit) -> list[str]:
    """Return who hears of a limit; a model's budget is everybody's."""
    match limit.scope:
        case LimitScope.ORGANIZATION:
            return [limit.scope_id]
        case LimitScope.MODEL:
            return list(session.scalars(select(OrganizationRow.id)))
        case LimitScope.PROJECT:
            project_id = limit.scope_id
        case LimitScope.KEY:
            project_id = session.get_one(ApiKeyRow, limit.scope_id).project_id
    return [session.get_one(ProjectRow, project_id).organization_id]
