"""Keys of devices: what one may do, and how it follows the device's group."""

from collections.abc import Iterable

from sqlalchemy import select
from sqlalchemy.orm import Session

from maas.store.fleet_tables import DeviceRow
from maas.store.key_terms import KeyTerms
from maas.store.roles import DEVICE_SCOPE, FALLBACK_SCOPE
from maas.store.tenancy_tables import ApiKeyRow

HEARTBEAT_PATH, ENROL_PATH = "/v1/devices/heartbeat", "/v1/devices/enrol"
_OWN_PATHS = (HEARTBEAT_PATH, "/v1/bundles")
_FALLBACK_PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings")


def device_terms(fallback_model: str | None) -> KeyTerms:
    """Return the terms of a device's key.

    Args:
        fallback_model: The one model that it may ask; none asks no model at all.
    """
    if fallback_model is None:
        # No scope lets it ask a model, so that it needs none by name.
        return KeyTerms(scopes=(DEVICE_SCOPE,), endpoints=_OWN_PATHS)
    return KeyTerms(
        scopes=(DEVICE_SCOPE, FALLBACK_SCOPE),
        models=(fallback_model,),
        endpoints=(*_OWN_PATHS, *_FALLBACK_PATHS),
    )


def fit_keys(session: Session, device_ids: Iterable[str], fallback_model: str | None) -> None:
    """Give the keys of devices the terms of the group they are in."""
    terms = device_terms(fallback_model)
    wanted = (
        select(ApiKeyRow)
        .join(DeviceRow, DeviceRow.key_id == ApiKeyRow.id)
        .where(DeviceRow.id.in_(list(device_ids)), ApiKeyRow.revoked_at.is_(None))
    )
    for key in session.scalars(wanted):
        key.scopes, key.models = list(terms.scopes), list(terms.models)
        key.endpoints = list(terms.endpoints)
