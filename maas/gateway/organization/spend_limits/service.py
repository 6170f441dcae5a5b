"""Monthly budgets of an organisation or a project."""

from collections.abc import Callable
from decimal import Decimal

from maas.core.errors import NotFound
from maas.gateway.authority import Authority
from maas.gateway.organization.spend_limits.schemas import SpendLimit, SpendLimitBody, shown
from maas.store.limits import LimitKey
from maas.store.records import LimitScope

# What was spent this month by an organisation or a project.
Spent = Callable[[LimitScope, str], Decimal]

_KINDS = {LimitScope.ORGANIZATION: "organization", LimitScope.PROJECT: "project"}


def get_budget(who: Authority, about: LimitKey, spent: Spent) -> SpendLimit:
    """Return a budget.

    Raises:
        NotFound: There is none.
    """
    limit = who.tenancy.limits.get(about)
    if limit is None or limit.monthly_budget is None:
        raise NotFound(f"the {about.scope} has no spend limit")
    return _shown(about, limit.monthly_budget, spent)


def set_budget(who: Authority, about: LimitKey, body: SpendLimitBody, spent: Spent) -> SpendLimit:
    """Make or replace a budget."""
    who.tenancy.limits.set(about, monthly_budget=body.budget)
    return _shown(about, body.budget, spent)


def delete_budget(who: Authority, about: LimitKey, spent: Spent) -> str:
    """Take a budget away and return the name of its kind.

    Raises:
        NotFound: There is none.
    """
    get_budget(who, about, spent)
    who.tenancy.limits.set(about, monthly_budget=None)
    return f"{_KINDS[about.scope]}.spend_limit.deleted"


def _shown(about: LimitKey, budget: Decimal, spent: Spent) -> SpendLimit:
    is_enforcing = spent(about.scope, about.scope_id) >= budget
    return shown(_KINDS[about.scope], budget, is_enforcing=is_enforcing)
