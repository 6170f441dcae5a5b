"""Keys that administer an organisation, on the wire."""

from typing import Literal

from pydantic import BaseModel

from maas.gateway.organization.wire import Name, Restrictions, redacted, seconds
from maas.store import records


class AdminKeyBody(Restrictions):
    """What such a key is made of."""

    name: Name


class AdminOwner(BaseModel):
    """Whose it is: the organisation's."""

    type: Literal["organization"] = "organization"
    object: Literal["organization"] = "organization"
    id: str
    role: Literal["owner"] = "owner"


class AdminKey(BaseModel):
    """A key that administers an organisation and asks no model."""

    id: str
    object: Literal["organization.admin_api_key"] = "organization.admin_api_key"
    name: str
    redacted_value: str
    created_at: int
    last_used_at: int | None = None
    expires_at: int | None
    owner: AdminOwner


class NewAdminKey(AdminKey):
    """Such a key as it is shown once, with its value."""

    value: str


def shown(key: records.ApiKey, organization_id: str) -> AdminKey:
    """Return a key as it is shown."""
    return AdminKey(
        id=key.id,
        name=key.name,
        redacted_value=redacted(key),
        created_at=int(key.created_at),
        expires_at=seconds(key.expires_at),
        owner=AdminOwner(id=organization_id),
    )
