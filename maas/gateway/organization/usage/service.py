"""From questions to buckets."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from maas.core.errors import InvalidRequest
from maas.gateway.organization.usage.schemas import (
    Bucket,
    CostsResult,
    Money,
    UsagePage,
    UsageResult,
)
from maas.ledger.usage import WIDTHS, UsageQuery, UsageReader, UsageRow

# Buckets of a page where nobody says, and at most, by width.
PAGE_SIZES = {"1m": (60, 1440), "1h": (24, 168), "1d": (7, 180)}
ENDPOINTS: Mapping[str, tuple[str, ...]] = {
    "completions": ("/v1/chat/completions", "/v1/completions"),
    "embeddings": ("/v1/embeddings",),
    "moderations": ("/v1/moderations",),
    "fine_tuning": ("/v1/fine_tuning/jobs",),
    "exports": ("/v1/exports",),
}
_USAGE_GROUPS = {"project_id", "user_id", "api_key_id", "model", "batch", "service_tier"}
_COST_GROUPS = {"project_id", "user_id", "api_key_id", "line_item"}


@dataclass(frozen=True)
class Question:
    """What a caller asks.

    Attributes:
        start: Epoch seconds, inclusive.
        end: Epoch seconds, exclusive.
        limit: Buckets in the page; none for as many as is usual.
        page: From the page before.
        batch: Only what was asked in the batch tier, or only what was not.
    """

    start: int
    end: int
    bucket_width: str = "1d"
    limit: int | None = None
    page: str | None = None
    project_ids: Sequence[str] = ()
    api_key_ids: Sequence[str] = ()
    user_ids: Sequence[str] = ()
    models: Sequence[str] = ()
    batch: bool | None = None
    group_by: Sequence[str] = ()


def read_usage(
    reader: UsageReader, organization_id: str, kind: str, question: Question
) -> UsagePage:
    """Return usage of a kind.

    Raises:
        InvalidRequest: The question makes no sense.
    """
    _check_groups(question.group_by, _USAGE_GROUPS)

    def shown(row: UsageRow) -> UsageResult:
        return UsageResult.model_validate(
            {
                "object": f"organization.usage.{kind}.result",
                "num_model_requests": row.counts["num_requests"],
                **_groups(row),
                **_counts(kind, row),
            }
        )

    where = {"organization_id": [organization_id], "endpoint": ENDPOINTS[kind]}
    return _page(reader, question, where, question.group_by, shown, by_currency=False)


def _groups(row: UsageRow) -> dict[str, Any]:
    groups: dict[str, Any] = dict(row.groups)
    if "batch" in groups:
        groups["batch"] = groups["batch"] == "true"
    return groups


def read_costs(reader: UsageReader, organization_id: str, question: Question) -> UsagePage:
    """Return costs; a line item is a model.

    Raises:
        InvalidRequest: The question makes no sense.
    """
    if question.bucket_width != "1d":
        raise InvalidRequest("costs come by the day: bucket_width 1d", param="bucket_width")
    _check_groups(question.group_by, _COST_GROUPS)
    groups = ["model" if name == "line_item" else name for name in question.group_by]

    def shown(row: UsageRow) -> CostsResult:
        amount = Money(value=row.amount, currency=row.currency.lower(), exact=f"{row.amount:f}")
        return CostsResult(
            amount=amount,
            line_item=row.groups.get("model"),
            project_id=row.groups.get("project_id"),
            user_id=row.groups.get("user_id"),
            api_key_id=row.groups.get("api_key_id"),
        )

    return _page(reader, question, {"organization_id": [organization_id]}, groups, shown)


def _counts(kind: str, row: UsageRow) -> dict[str, int | float]:
    counts = row.counts
    if kind == "fine_tuning":
        return {"training_tokens": counts["training_tokens"]}
    if kind == "exports":
        return {"export_seconds": counts["export_milliseconds"] / 1000}
    if kind != "completions":
        return {"input_tokens": counts["input_tokens"]}
    return {
        "input_tokens": counts["input_tokens"],
        "input_cached_tokens": counts["cached_tokens"],
        "output_tokens": counts["output_tokens"],
    }


def _check_groups(wanted: Sequence[str], offered: set[str]) -> None:
    for name in wanted:
        if name not in offered:
            names = ", ".join(sorted(offered))
            raise InvalidRequest(f"group_by {name!r} is not offered; {names} are", param="group_by")


def _page(
    reader: UsageReader,
    question: Question,
    where: Mapping[str, Sequence[str]],
    groups: Sequence[str],
    shown: Callable[[UsageRow], Any],
    *,
    by_currency: bool = True,
) -> UsagePage:
    width = WIDTHS.get(question.bucket_width)
    if width is None:
        raise InvalidRequest("bucket_width is 1m, 1h or 1d", param="bucket_width")
    if question.end <= question.start:
        raise InvalidRequest("end_time must be after start_time", param="end_time")
    usual, most = PAGE_SIZES[question.bucket_width]
    limit = usual if question.limit is None else question.limit
    if not 1 <= limit <= most:
        raise InvalidRequest(f"limit is 1 to {most} for {question.bucket_width}", param="limit")
    first = _first_bucket(question, width)
    last = min(first + limit * width, question.end)
    wanted = {
        "project_id": question.project_ids,
        "user_id": question.user_ids,
        "api_key_id": question.api_key_ids,
        "model": question.models,
        "batch": [] if question.batch is None else [str(question.batch).lower()],
    }
    rows = reader.read(
        UsageQuery(
            start=max(first, question.start),
            end=last,
            width_s=width,
            where={**where, **{name: values for name, values in wanted.items() if values}},
            group_by=groups,
            by_currency=by_currency,
        )
    )
    results: dict[int, list[Any]] = {start: [] for start in range(first, last, width)}
    for row in rows:
        results[row.start].append(shown(row))
    has_more = last < question.end
    return UsagePage(
        data=[
            Bucket(start_time=start, end_time=start + width, results=found)
            for start, found in results.items()
        ],
        has_more=has_more,
        next_page=f"page_{last}" if has_more else None,
    )


def _first_bucket(question: Question, width: int) -> int:
    if question.page is None:
        return question.start // width * width
    number = question.page.removeprefix("page_")
    if not number.isdecimal() or not question.start <= int(number) < question.end:
        raise InvalidRequest("page is not of this question", param="page")
    return int(number) // width * width
