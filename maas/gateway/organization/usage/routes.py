"""Read usage and costs."""

import time
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query, Request

from maas.gateway.authority import Authority, in_organization
from maas.gateway.organization.usage.schemas import UsagePage
from maas.gateway.organization.usage.service import Question, read_costs, read_usage
from maas.ledger.usage import UsageReader
from maas.store.roles import Permission

router = APIRouter(prefix="/v1/organization", tags=["organization"])

_Reader = Annotated[Authority, Depends(in_organization(Permission.USAGE))]
Kind = Literal["completions", "embeddings", "moderations", "fine_tuning"]


def _usage(request: Request) -> UsageReader:
    return request.app.state.usage


_UsageDep = Annotated[UsageReader, Depends(_usage)]


def _question(
    request: Request,
    start_time: Annotated[int, Query(ge=0)],
    end_time: Annotated[int | None, Query(ge=0)] = None,
    bucket_width: str = "1d",
    limit: int | None = None,
    page: str | None = None,
) -> Question:
    def several(name: str) -> list[str]:
        # SDKs write lists as ``name[]``, people as ``name``.
        return [*request.query_params.getlist(f"{name}[]"), *request.query_params.getlist(name)]

    return Question(
        start=start_time,
        end=end_time if end_time is not None else int(time.time()) + 1,
        bucket_width=bucket_width,
        limit=limit,
        page=page,
        project_ids=several("project_ids"),
        api_key_ids=several("api_key_ids"),
        models=several("models"),
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
