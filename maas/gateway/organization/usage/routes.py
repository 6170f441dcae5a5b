"""Read usage and costs."""

import time
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query, Request
from pydantic import BaseModel

from maas.gateway.authority import Authority, in_organization
from maas.gateway.organization.usage.schemas import UsagePage
from maas.gateway.organization.usage.service import Question, read_costs, read_usage
from maas.gateway.organization.wire import Moment
from maas.ledger.usage import UsageReader
from maas.store.roles import Permission

router = APIRouter(prefix="/v1/organization", tags=["organization"])

_Reader = Annotated[Authority, Depends(in_organization(Permission.USAGE))]
Kind = Literal["completions", "embeddings", "moderations", "fine_tuning", "exports"]


def _usage(request: Request) -> UsageReader:
    return request.app.state.usage


_UsageDep = Annotated[UsageReader, Depends(_usage)]


class _Period(BaseModel):
    """What a question says once; lists are read apart, under both of their names."""

    start_time: Moment
    end_time: Moment | None = None
    bucket_width: str = "1d"
    limit: int | None = None
    page: str | None = None
    batch: bool | None = None


def _question(request: Request, period: Annotated[_Period, Query()]) -> Question:
    def several(name: str) -> list[str]:
        # SDKs write lists as ``name[]``, people as ``name``.
        return [*request.query_params.getlist(f"{name}[]"), *request.query_params.getlist(name)]

    return Question(
        start=period.start_time,
        end=int(time.time()) + 1 if period.end_time is None else period.end_time,
        bucket_width=period.bucket_width,
        limit=period.limit,
        page=period.page,
        project_ids=several("project_ids"),
        api_key_ids=several("api_key_ids"),
        user_ids=several("user_ids"),
        models=several("models"),
        batch=period.batch,
        group_by=several("group_by"),
    )


_QuestionDep = Annotated[Question, Depends(_question)]


@router.get("/usage/{kind}")
def get_usage(kind: Kind, who: _Reader, reader: _UsageDep, question: _QuestionDep) -> UsagePage:
    """Return what was used, in buckets of time."""
    return read_usage(reader, who.organization_id, kind, question)


@router.get("/costs")
def get_costs(who: _Reader, reader: _UsageDep, question: _QuestionDep) -> UsagePage:
    """Return what it cost, by the day."""
    return read_costs(reader, who.organization_id, question)
