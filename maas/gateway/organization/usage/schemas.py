"""Usage and costs as OpenAI shapes them: a page of buckets, each with a result for each group."""

from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, PlainSerializer

# A JSON number without a binary fraction in between: the digits are those of the ledger.
Amount = Annotated[Decimal, PlainSerializer(float, return_type=float, when_used="json")]


class UsageResult(BaseModel):
    """Sums of one group in one bucket; which counts there are depends on the kind of usage."""

    model_config = ConfigDict(extra="allow")
    object: str
    num_model_requests: int = 0
    project_id: str | None = None
    user_id: str | None = None
    api_key_id: str | None = None
    model: str | None = None


class Money(BaseModel):
    """An amount; ``exact`` is ours and has every digit of it."""

    value: Amount
    currency: str
    exact: str


class CostsResult(BaseModel):
    """What one group cost in one bucket."""

    object: Literal["organization.costs.result"] = "organization.costs.result"
    amount: Money
    line_item: str | None = None
    project_id: str | None = None
    user_id: str | None = None
    api_key_id: str | None = None


class Bucket(BaseModel):
    """A stretch of time."""

    object: Literal["bucket"] = "bucket"
    start_time: int
    end_time: int
    results: list[Any]


class UsagePage(BaseModel):
    """Buckets, oldest first."""

    object: Literal["page"] = "page"
    data: list[Bucket]
    has_more: bool
    next_page: str | None
