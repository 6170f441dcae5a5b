"""Whether the process lives, and which models answer."""

from fastapi import APIRouter, Response
from pydantic import BaseModel

from maas.gateway.access import SnapshotDep

router = APIRouter(tags=["health"])


class Health(BaseModel):
    """The process lives."""

    status: str = "ok"


class Readiness(BaseModel):
    """Models that answer, with their ready replicas, and models that do not."""

    ready: bool
    models: dict[str, int]
    waiting: list[str]


@router.get("/healthz")
async def healthz() -> Health:
    """Say that the process lives."""
    return Health()


@router.get("/readyz", responses={503: {"model": Readiness}})
async def readyz(snapshot: SnapshotDep, response: Response) -> Readiness:
    """Say which models answer; 503 while none does."""
    counts = {name: len(entry.targets) for name, entry in snapshot.models.items()}
    models = {name: count for name, count in counts.items() if count}
    if not models:
        response.status_code = 503
        response.headers["retry-after"] = "2"
    waiting = sorted(counts.keys() - models.keys())
    return Readiness(ready=bool(models), models=models, waiting=waiting)
