"""Service accounts on the wire."""

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from maas.gateway.organization.wire import Body, Name, WireRole, shown_role
from maas.store import records


class ServiceAccountBody(Body):
    """What a service account is made of; ``role`` is ours."""

    name: Name
    role: WireRole = records.Role.DEVELOPER
    create_service_account_only: bool | None = None
    expires_in_seconds: Annotated[int | None, Field(strict=True, gt=0, le=10 * 365 * 86400)] = None


class ServiceAccount(BaseModel):
    """A service account."""

    id: str
    object: Literal["organization.project.service_account"] = "organization.project.service_account"
    name: str
    role: str
    created_at: int


class AccountKey(BaseModel):
    """The first key of a service account, with its value."""

    id: str
    object: Literal["organization.project.service_account.api_key"] = (
        "organization.project.service_account.api_key"
    )
    name: str
    value: str
    created_at: int
    expires_at: int | None


class NewServiceAccount(ServiceAccount):
    """A service account as it is shown once, with its key."""

    api_key: AccountKey | None


def shown(account: records.ServiceAccount) -> ServiceAccount:
    """Return a service account as it is shown."""
    return ServiceAccount(
        id=account.id,
        name=account.name,
        role=shown_role(account.role, in_project=True),
        created_at=int(account.created_at),
    )
