"""Projects on the wire."""

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from maas.gateway.organization.wire import Body, Name, seconds
from maas.store import records
from maas.store.projects import MAX_WEIGHT

Weight = Annotated[int, Field(strict=True, ge=1, le=MAX_WEIGHT)]


class ProjectBody(Body):
    """What a project is made of."""

    name: Name
    weight: Weight = 1
    priority: records.Priority = records.Priority.ONLINE


class ProjectChangeBody(Body):
    """What to change of a project."""

    name: Name | None = None
    weight: Weight | None = None
    priority: records.Priority | None = None


class Project(BaseModel):
    """A project; ``weight`` and ``priority`` are ours."""

    id: str
    object: Literal["organization.project"] = "organization.project"
    name: str
    created_at: int
    archived_at: int | None
    status: Literal["active", "archived"]
    weight: int
    priority: str


def shown(project: records.Project) -> Project:
    """Return a project as it is shown."""
    return Project(
        id=project.id,
        name=project.name,
        created_at=int(project.created_at),
        archived_at=seconds(project.archived_at),
        status="active" if project.archived_at is None else "archived",
        weight=project.weight,
        priority=project.priority.value,
    )
