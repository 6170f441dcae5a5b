"""Users of an organisation on the wire."""

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from maas.gateway.organization.wire import Body, Name, WireRole, shown_role
from maas.store import records

Email = Annotated[str, Field(min_length=3, max_length=255, pattern=r"^[^@\s]+@[^@\s]+$")]


class UserBody(Body):
    """What a user is made of; OpenAI invites by mail instead."""

    email: Email
    name: Name
    role: WireRole


class RoleBody(Body):
    """A role to be given."""

    role: WireRole


class User(BaseModel):
    """A user."""

    id: str
    object: Literal["organization.user"] = "organization.user"
    name: str
    email: str
    role: str
    added_at: int


def shown(user: records.User) -> User:
    """Return a user as it is shown."""
    return User(
        id=user.id,
        name=user.name,
        email=user.email,
        role=shown_role(user.role, in_project=False),
        added_at=int(user.created_at),
    )
