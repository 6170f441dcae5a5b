"""Users of a project on the wire."""

from typing import Literal

from pydantic import BaseModel

from maas.gateway.organization.wire import Body, WireRole, shown_role
from maas.store import records


class MemberBody(Body):
    """Who is to be added, by id or by address, and as what."""

    role: WireRole
    user_id: str | None = None
    email: str | None = None


class ProjectUser(BaseModel):
    """A user in a project."""

    id: str
    object: Literal["organization.project.user"] = "organization.project.user"
    name: str
    email: str
    role: str
    added_at: int


def shown(user: records.User, member: records.ProjectMember) -> ProjectUser:
    """Return a user of a project as it is shown."""
    return ProjectUser(
        id=user.id,
        name=user.name,
        email=user.email,
        role=shown_role(member.role, in_project=True),
        added_at=int(member.created_at),
    )
