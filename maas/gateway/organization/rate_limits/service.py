"""Rate limits of an organisation, a project or a key: one for each model, one for all together."""

from dataclasses import replace

from maas.core.errors import InvalidRequest, NotFound
from maas.gateway.authority import Authority, ProjectAuthority
from maas.gateway.organization.pages import ListPage, page_of
from maas.gateway.organization.rate_limits.schemas import (
    ALL_MODELS,
    FIELDS,
    ID_PREFIX,
    RateLimit,
    RateLimitBody,
    shown,
)
from maas.gateway.relay.snapshot import Snapshot
from maas.store.limits import LimitKey
from maas.store.pages import Window
from maas.store.records import LimitScope


def of_organization(who: Authority) -> LimitKey:
    """Return what the limits of the organisation are about."""
    return LimitKey(LimitScope.ORGANIZATION, who.organization_id)


def of_project(who: ProjectAuthority) -> LimitKey:
    """Return what the limits of the project are about."""
    return LimitKey(LimitScope.PROJECT, who.project.id)


def of_key(who: ProjectAuthority, key_id: str) -> LimitKey:
    """Return what the limits of a key are about.

    Raises:
        NotFound: The project has no such key.
    """
    key = who.tenancy.keys.get(key_id, project_id=who.project.id)
    if key.revoked_at is not None:
        raise NotFound(f"no API key has the id {key_id!r}")
    return LimitKey(LimitScope.KEY, key_id)


def list_limits(
    who: Authority, about: LimitKey, snapshot: Snapshot, window: Window
) -> ListPage[RateLimit]:
    """Return a page of limits: all models together first, then every model there is.

    Raises:
        InvalidRequest: ``after`` is not in the list.
    """
    found = {
        limit.model: limit
        for limit in who.tenancy.limits.list(organization_id=who.organization_id)
        if (limit.scope, limit.scope_id) == (about.scope, about.scope_id)
    }
    roots = {entry.root for entry in snapshot.models.values()}
    names = sorted({*roots, *(name for name in found if name is not None)})
    items = [shown(name, found.get(name)) for name in (None, *names)]
    start = 0
    if window.after is not None:
        ids = [item.id for item in items]
        if window.after not in ids:
            raise InvalidRequest(f"after: {window.after!r} is not in this list", param="after")
        start = ids.index(window.after) + 1
    end = start + window.limit
    return page_of(items[start:end], has_more=end < len(items))


def modify_limit(who: Authority, about: LimitKey, limit_id: str, body: RateLimitBody) -> RateLimit:
    """Change the numbers that are given.

    Raises:
        NotFound: The id is none of a rate limit.
    """
    model = limit_id.removeprefix(ID_PREFIX)
    if not limit_id.startswith(ID_PREFIX) or not model:
        raise NotFound(f"no rate limit has the id {limit_id!r}; they read rl-<model> or rl-*")
    about = replace(about, model=None if model == ALL_MODELS else model)
    changes = {FIELDS[wire]: getattr(body, wire) for wire in body.model_fields_set}
    return shown(about.model, who.tenancy.limits.set(about, **changes))
