"""Rate limits on the wire."""

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from maas.gateway.organization.wire import Body
from maas.store import records

ID_PREFIX = "rl-"
ALL_MODELS = "*"

Count = Annotated[int | None, Field(strict=True, ge=0, le=2**53)]


class RateLimitBody(Body):
    """Numbers to change; null takes one away, what is not given stays. The last two are ours."""

    max_requests_per_1_minute: Count = None
    max_tokens_per_1_minute: Count = None
    max_tokens_per_1_day: Count = None
    max_concurrent_requests: Count = None


# Our names for what the wire calls differently.
FIELDS = {
    "max_requests_per_1_minute": "requests_per_minute",
    "max_tokens_per_1_minute": "tokens_per_minute",
    "max_tokens_per_1_day": "tokens_per_day",
    "max_concurrent_requests": "concurrent_requests",
}


class RateLimit(BaseModel):
    """A rate limit of one model, or of all together (``*``); null limits nothing."""

    id: str
    object: Literal["project.rate_limit"] = "project.rate_limit"
    model: str
    max_requests_per_1_minute: int | None
    max_tokens_per_1_minute: int | None
    max_tokens_per_1_day: int | None
    max_concurrent_requests: int | None


def shown(model: str | None, limit: records.Limit | None) -> RateLimit:
    """Return a limit as it is shown; none where there is no limit."""
    name = model or ALL_MODELS
    return RateLimit(
        id=ID_PREFIX + name,
        model=name,
        max_requests_per_1_minute=limit.requests_per_minute if limit else None,
        max_tokens_per_1_minute=limit.tokens_per_minute if limit else None,
        max_tokens_per_1_day=limit.tokens_per_day if limit else None,
        max_concurrent_requests=limit.concurrent_requests if limit else None,
    )
