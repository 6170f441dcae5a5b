"""List the audit log, export it, and check that it is whole."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query
from fastapi.responses import StreamingResponse

from maas.core.errors import PermissionDenied
from maas.gateway.authority import Authority, in_organization
from maas.gateway.organization.audit_logs.schemas import shown
from maas.gateway.organization.wire import Moment
from maas.store.audit_log import AuditFilter
from maas.store.pages import MAX_PAGE
from maas.store.roles import Permission

router = APIRouter(prefix="/v1/organization/audit_logs", tags=["organization"])

_Reader = Annotated[Authority, Depends(in_organization(Permission.AUDIT))]


def _bracketed(name: str) -> Any:
    """Return the query parameter of a list as OpenAI's clients write it: ``name[]``."""
    return Query(alias=f"{name}[]", default_factory=list)


def _filter(  # noqa: PLR0913 - one argument a filter that OpenAI has
    event_types: Annotated[list[str], _bracketed("event_types")],
    actor_ids: Annotated[list[str], _bracketed("actor_ids")],
    project_ids: Annotated[list[str], _bracketed("project_ids")],
    resource_ids: Annotated[list[str], _bracketed("resource_ids")],
    gte: Annotated[Moment | None, Query(alias="effective_at[gte]")] = None,
    gt: Annotated[Moment | None, Query(alias="effective_at[gt]")] = None,
    lte: Annotated[Moment | None, Query(alias="effective_at[lte]")] = None,
    lt: Annotated[Moment | None, Query(alias="effective_at[lt]")] = None,
) -> AuditFilter:
    # Whole seconds on the wire: what happened within second n has effective_at n.
    since = [float(n) for n in (gte, gt + 1 if gt is not None else None) if n is not None]
    until = [float(n) for n in (lt, lte + 1 if lte is not None else None) if n is not None]
    return AuditFilter(
        project_ids=tuple(project_ids),
        actions=tuple(event_types),
        actor_ids=tuple(actor_ids),
        resource_ids=tuple(resource_ids),
        since=max(since, default=None),
        until=min(until, default=None),
    )


@dataclass
class _Part:
    """Which part of the list."""

    after: str | None = None
    before: str | None = None
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 20


@router.get("")
def list_audit_logs(
    who: _Reader,
    wanted: Annotated[AuditFilter, Depends(_filter)],
    part: Annotated[_Part, Depends()],
    actor_emails: Annotated[list[str] | None, Query(alias="actor_emails[]")] = None,
) -> dict[str, Any]:
    """List what was changed, newest first."""
    mine = _of(who, wanted)
    if actor_emails:
        mine = replace(mine, actor_ids=(*mine.actor_ids, *_keys_of(who, actor_emails)))
    page = who.tenancy.audit.list(mine, limit=part.limit, after=part.after, before=part.before)
    keys = who.tenancy.keys.find_many({entry.actor_id for entry in page.items})
    data = [shown(entry, keys) for entry in page.items]
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": page.has_more,
    }


@router.get("/export")
def export_audit_logs(who: _Reader, everything: bool = False) -> StreamingResponse:
    """Return the log as lines of JSON, oldest first.

    Only the whole log can be checked against its hashes; only the operator gets that.
    """
    if everything and not who.access.is_operator:
        raise PermissionDenied("only the operator exports what belongs to all organisations")
    wanted = AuditFilter() if everything else _of(who, AuditFilter())

    def lines() -> Iterator[str]:
        for line in who.tenancy.audit.export(wanted):
            yield line + "\n"

    return StreamingResponse(lines(), media_type="application/x-ndjson")


@router.get("/verify")
def verify_audit_logs(who: _Reader) -> dict[str, Any]:
    """Check the whole log against its hashes; what is found is said to the operator only."""
    verdict = who.tenancy.audit.verify()
    answer: dict[str, Any] = {
        "object": "organization.audit_log.verification",
        "is_whole": verdict.is_whole,
    }
    return {**asdict(verdict), **answer} if who.access.is_operator else answer


def _keys_of(who: Authority, emails: list[str]) -> tuple[str, ...]:
    """Return the keys of some users; one that nobody has where there are none."""
    users = {who.tenancy.users.find_by_email(who.organization_id, email).id for email in emails}
    return who.tenancy.keys.of_users(users) or ("nobody",)


def _of(who: Authority, wanted: AuditFilter) -> AuditFilter:
    return replace(wanted, organization_id=who.organization_id)
