"""Caps: a limit as a counter sees it, and the windows it is counted in (UTC)."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import lru_cache
from typing import NamedTuple

from maas.store.money import to_nanos
from maas.store.records import Limit

MINUTE_S = 60
DAY_S = 86_400


class Metric(StrEnum):
    """What a cap counts."""

    REQUESTS_PER_MINUTE = "requests_per_minute"
    TOKENS_PER_MINUTE = "tokens_per_minute"
    CONCURRENT_REQUESTS = "concurrent_requests"
    TOKENS_PER_DAY = "tokens_per_day"
    MONTHLY_BUDGET = "monthly_budget"

    @property
    def unit(self) -> int:
        """Which of the ``Amounts`` it counts."""
        return _UNITS[self]

    @property
    def is_journaled(self) -> bool:
        """Whether the journal says how much is used; the other metrics are counted for a minute."""
        return self in {Metric.TOKENS_PER_DAY, Metric.MONTHLY_BUDGET}


class Amounts(NamedTuple):
    """How much of everything a request takes; indexed by ``Metric.unit``.

    Attributes:
        num_open: 1 while it is open.
    """

    num_requests: int = 0
    num_tokens: int = 0
    nanos: int = 0
    num_open: int = 0


_UNITS = {
    Metric.REQUESTS_PER_MINUTE: 0,
    Metric.TOKENS_PER_MINUTE: 1,
    Metric.TOKENS_PER_DAY: 1,
    Metric.MONTHLY_BUDGET: 2,
    Metric.CONCURRENT_REQUESTS: 3,
}


COUNTED_IN_TOKENS = frozenset(
    {Metric.TOKENS_PER_MINUTE, Metric.TOKENS_PER_DAY, Metric.MONTHLY_BUDGET}
)


@dataclass(frozen=True)
class Window:
    """Where a cap is counted just now.

    Attributes:
        key: Of the counter.
        start: Epoch seconds.
        end: Epoch seconds; none for a cap on what is open at a time.
    """

    key: str
    start: float
    end: float | None


@dataclass(frozen=True)
class Cap:
    """At most ``amount`` of a metric by a subject in each of its windows.

    Attributes:
        subject: ``project:proj-x``, or ``project:proj-x/model:m`` for one model.
        amount: Requests, tokens, or nano-units of money.
        name: How the limit is named to who ran into it.
    """

    metric: Metric
    subject: str
    amount: int
    name: str = ""

    def window(self, now: float) -> Window:
        """Return the window that a moment lies in."""
        start, end, label = window_of(self.metric, int(now // MINUTE_S))
        return Window(counter_key(self.metric, self.subject, label), start, end)


def counter_key(metric: Metric, subject: str, label: str) -> str:
    """Return the key of a counter."""
    return f"{metric.value}/{label}/{subject}"


@lru_cache(maxsize=1024)
def window_of(metric: Metric, minute: int) -> tuple[float, float | None, str]:
    """Return start, end and label of the window that a minute since the epoch lies in."""
    start, end = _bounds(metric, minute)
    label = "now" if end is None else datetime.fromtimestamp(start, UTC).strftime("%Y%m%dT%H%M")
    return start, end, label


def _bounds(metric: Metric, minute: int) -> tuple[float, float | None]:
    at = minute * MINUTE_S
    match metric:
        case Metric.CONCURRENT_REQUESTS:
            return 0.0, None
        case Metric.REQUESTS_PER_MINUTE | Metric.TOKENS_PER_MINUTE:
            return float(at), float(at + MINUTE_S)
        case Metric.TOKENS_PER_DAY:
            start = at - at % DAY_S
            return float(start), float(start + DAY_S)
        case Metric.MONTHLY_BUDGET:
            moment = datetime.fromtimestamp(at, UTC)
            first = moment.replace(day=1, hour=0, minute=0)
            following = (first + timedelta(days=32)).replace(day=1)
            return first.timestamp(), following.timestamp()


def caps_of(limit: Limit, subject: str) -> list[Cap]:
    """Return the caps that a limit sets."""
    caps = [
        Cap(metric, subject, amount, f"{metric.value} of {subject}")
        for metric in Metric
        if metric is not Metric.MONTHLY_BUDGET
        and (amount := getattr(limit, metric.value)) is not None
    ]
    if limit.monthly_budget is not None:
        metric, nanos = Metric.MONTHLY_BUDGET, to_nanos(limit.monthly_budget)
        caps.append(Cap(metric, subject, nanos, f"{metric.value} of {subject}"))
    return caps


def subject_of(scope: str, scope_id: str, model: str | None = None) -> str:
    """Return the subject that a limit is about."""
    owner = f"{scope}:{scope_id}"
    return owner if model is None or scope == "model" else f"{owner}/model:{model}"


def subjects_of(
    *, organization_id: str, project_id: str, key_id: str, model: str, base: str = ""
) -> list[str]:
    """Return everything that a request by this key to this model counts against.

    Args:
        organization_id: Of the key.
        project_id: Of the key.
        key_id: The key's.
        model: What is asked.
        base: What that was tuned from: tuning is no way around the base's limits.
    """
    owners = (("organization", organization_id), ("project", project_id), ("key", key_id))
    subjects = [subject_of(*owner) for owner in owners]
    for name in (model, base) if base else (model,):
        subjects.extend(subject_of(*owner, name) for owner in owners)
        subjects.append(subject_of("model", name))
    return subjects
