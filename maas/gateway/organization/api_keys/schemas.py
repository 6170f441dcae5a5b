"""Keys of a project on the wire."""

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from maas.gateway.organization.wire import Body, Name, Restrictions, redacted, seconds, shown_role
from maas.store import records


class KeyBody(Restrictions):
    """What a key is made of; making keys this way is ours, OpenAI has it in its dashboard."""

    name: Name
    user_id: str | None = None
    service_account_id: str | None = None


class RotationBody(Body):
    """How long the old key lives on."""

    overlap_seconds: Annotated[int, Field(strict=True, ge=0, le=90 * 86400)] = 3600


class OwnerUser(BaseModel):
    """The user that a key belongs to."""

    id: str
    name: str
    email: str
    role: str
    created_at: int


class OwnerServiceAccount(BaseModel):
    """The service account that a key belongs to."""

    id: str
    name: str
    role: str
    created_at: int


class Owner(BaseModel):
    """Whose a key is; nobody's where both are missing: then it is the project's."""

    type: Literal["user", "service_account"] | None = None
    user: OwnerUser | None = None
    service_account: OwnerServiceAccount | None = None


class Key(BaseModel):
    """A key; what restricts it is ours."""

    id: str
    object: Literal["organization.project.api_key"] = "organization.project.api_key"
    name: str
    redacted_value: str
    created_at: int
    last_used_at: int | None = None
    expires_at: int | None
    owner: Owner
    owner_project_access: Literal["active", "inactive"] = "active"
    models: list[str]
    endpoints: list[str]
    networks: list[str]
    replaced_by: str | None


class NewKey(Key):
    """A key as it is shown once, with its value."""

    value: str


def user_owner(user: records.User) -> Owner:
    """Return a user as the owner of a key."""
    return Owner(
        type="user",
        user=OwnerUser(
            id=user.id,
            name=user.name,
            email=user.email,
            role=shown_role(user.role, in_project=False),
            created_at=int(user.created_at),
        ),
    )


def account_owner(account: records.ServiceAccount) -> Owner:
    """Return a service account as the owner of a key."""
    return Owner(
        type="service_account",
        service_account=OwnerServiceAccount(
            id=account.id,
            name=account.name,
            role=shown_role(account.role, in_project=True),
            created_at=int(account.created_at),
        ),
    )


def shown(key: records.ApiKey, owner: Owner) -> Key:
    """Return a key as it is shown."""
    return Key(
        id=key.id,
        name=key.name,
        redacted_value=redacted(key),
        created_at=int(key.created_at),
        expires_at=seconds(key.expires_at),
        owner=owner,
        models=list(key.models),
        endpoints=list(key.endpoints),
        networks=list(key.networks),
        replaced_by=key.replaced_by,
    )
