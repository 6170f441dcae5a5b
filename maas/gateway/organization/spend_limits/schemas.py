"""Monthly budgets on the wire: whole cents, as OpenAI has them."""

from decimal import Decimal
from typing import Annotated, Literal

from pydantic import BaseModel, Field

from maas.gateway.organization.wire import Body

_CENTS = Decimal(100)


class SpendLimitBody(Body):
    """A monthly budget; the currency is that of the prices."""

    currency: Literal["USD"] = "USD"
    interval: Literal["month"] = "month"
    threshold_amount: Annotated[int, Field(strict=True, ge=0, le=10**11)]

    @property
    def budget(self) -> Decimal:
        """The amount in the currency."""
        return self.threshold_amount / _CENTS


class Enforcement(BaseModel):
    """Whether requests are refused for it now."""

    status: Literal["inactive", "enforcing"]


class SpendLimit(BaseModel):
    """A monthly budget."""

    object: str
    currency: str = "USD"
    interval: Literal["month"] = "month"
    threshold_amount: int
    enforcement: Enforcement


class SpendLimitDeleted(BaseModel):
    """The answer to a deletion."""

    object: str
    deleted: Literal[True] = True


def shown(kind: str, budget: Decimal, *, is_enforcing: bool) -> SpendLimit:
    """Return a budget as it is shown."""
    return SpendLimit(
        object=f"{kind}.spend_limit",
        threshold_amount=int(budget * _CENTS),
        enforcement=Enforcement(status="enforcing" if is_enforcing else "inactive"),
    )
