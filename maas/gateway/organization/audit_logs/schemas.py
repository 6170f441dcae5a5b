"""Entries of the audit log on the wire."""

from typing import Any

from maas.store.audit import AuditEntry
from maas.store.records import ApiKey

ID_PREFIX = "audit-"


def _actor(entry: AuditEntry, keys: dict[str, ApiKey]) -> dict[str, Any]:
    """Return who did it, as OpenAI names it: a key, or a session at the machine."""
    if entry.actor_kind != "api_key":
        return {"type": "session", "session": {"user": {"id": entry.actor_id}}}
    key = keys.get(entry.actor_id)
    owner: dict[str, Any] = {"id": entry.actor_id}
    if key is not None and key.user_id is not None:
        owner |= {"type": "user", "user": {"id": key.user_id}}
    elif key is not None and key.service_account_id is not None:
        owner |= {"type": "service_account", "service_account": {"id": key.service_account_id}}
    return {"type": "api_key", "api_key": owner}


def shown(entry: AuditEntry, keys: dict[str, ApiKey]) -> dict[str, Any]:
    """Return an entry as it is shown: OpenAI's fields, then ours.

    Args:
        entry: Of the log.
        keys: By id, to say whose they are.
    """
    changed = {"changes_requested": entry.after} if entry.before else {"data": entry.after}
    return {
        "object": "organization.audit_log",
        "id": f"{ID_PREFIX}{entry.seq}",
        "type": entry.action,
        "effective_at": int(entry.at),
        "project": {"id": entry.project_id} if entry.project_id else None,
        "actor": _actor(entry, keys),
        entry.action: {"id": entry.resource_id, **changed},
        "actor_kind": entry.actor_kind,
        "request_id": entry.request_id,
        "resource": entry.resource,
        "resource_id": entry.resource_id,
        "before": entry.before,
        "after": entry.after,
        "previous_hash": entry.previous_hash,
        "hash": entry.hash,
    }
