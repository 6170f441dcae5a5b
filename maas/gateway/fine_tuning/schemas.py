"""Jobs, events and checkpoints on the wire."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from maas.gateway.organization.wire import Body, seconds
from maas.store.job_records import Job, JobCheckpoint, JobEvent

# Strict: true is no number of epochs.
AutoInt = Literal["auto"] | Annotated[int, Field(strict=True)] | None
AutoFloat = Literal["auto"] | Annotated[float, Field(strict=True)] | None


class HyperparametersBody(Body):
    """Numbers, or "auto"; ``recipe`` is ours: a name of ``GET /v1/fine_tuning/recipes``."""

    n_epochs: AutoInt = None
    batch_size: AutoInt = None
    learning_rate_multiplier: AutoFloat = None
    beta: AutoFloat = None
    recipe: Annotated[str | None, Field(max_length=32)] = None

    def given(self) -> dict[str, Any]:
        """Return the numbers that were asked for."""
        values = self.model_dump(exclude_none=True)
        values.pop("recipe", None)
        return values


class MethodPart(Body):
    """Of one method."""

    hyperparameters: HyperparametersBody = HyperparametersBody()


class MethodBody(Body):
    """What the data teaches."""

    type: Literal["supervised", "dpo"]
    supervised: MethodPart | None = None
    dpo: MethodPart | None = None


class JobBody(Body):
    """A new job."""

    model: Annotated[str, Field(min_length=1, max_length=255)]
    training_file: Annotated[str, Field(min_length=1, max_length=255)]
    validation_file: Annotated[str | None, Field(max_length=255)] = None
    suffix: Annotated[str | None, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")] = None
    seed: Annotated[int | None, Field(strict=True, ge=0, le=2**31 - 1)] = None
    method: MethodBody | None = None
    hyperparameters: HyperparametersBody | None = None
    integrations: list[dict[str, Any]] | None = None
    metadata: dict[str, str] | None = None


class JobObject(BaseModel):
    """A job. ``maas`` is ours: data report, estimate, progress."""

    object: Literal["fine_tuning.job"] = "fine_tuning.job"
    id: str
    created_at: int
    finished_at: int | None
    estimated_finish: int | None
    error: dict[str, Any] | None
    fine_tuned_model: str | None
    hyperparameters: dict[str, Any]
    method: dict[str, Any]
    model: str
    organization_id: str
    result_files: list[str]
    seed: int
    status: str
    trained_tokens: int | None
    training_file: str
    validation_file: str | None
    integrations: list[Any]
    metadata: dict[str, str] | None
    maas: dict[str, Any]


class EventObject(BaseModel):
    """Something a job told."""

    object: Literal["fine_tuning.job.event"] = "fine_tuning.job.event"
    id: str
    created_at: int
    level: str
    message: str
    type: str
    data: dict[str, Any] | None


class CheckpointObject(BaseModel):
    """A checkpoint and the name it answers under."""

    object: Literal["fine_tuning.job.checkpoint"] = "fine_tuning.job.checkpoint"
    id: str
    created_at: int
    fine_tuned_model_checkpoint: str
    fine_tuning_job_id: str
    step_number: int
    metrics: dict[str, Any]


def shown(job: Job, organization_id: str, receipt: Mapping[str, Any] | None = None) -> JobObject:
    """Return a job as it is shown; lists show no receipts."""
    kind = str(job.method["type"])
    asked: dict[str, Any] = dict(dict(job.method.get(kind) or {}).get("hyperparameters") or {})
    names = ["n_epochs", "batch_size", "learning_rate_multiplier"]
    names += ["beta"] if kind == "dpo" else []
    resolved = dict(job.resolved or {})
    numbers = {name: resolved.get(name, asked.get(name, "auto")) for name in names}
    finish = job.estimated_finish
    if finish is None and job.progress and not job.is_over and job.runner_seen_at:
        finish = job.runner_seen_at + float(job.progress.get("eta_s", 0.0))
    return JobObject(
        id=job.id,
        created_at=int(job.created_at),
        finished_at=seconds(job.finished_at),
        estimated_finish=seconds(finish),
        error=dict(job.error) if job.error and job.status == "failed" else None,
        fine_tuned_model=job.fine_tuned_model,
        hyperparameters=numbers,
        method={"type": kind, kind: {"hyperparameters": numbers}},
        model=job.model_id,
        organization_id=organization_id,
        result_files=list(job.result_files),
        seed=job.seed,
        status=job.status.value,
        trained_tokens=job.trained_tokens,
        training_file=job.training_file,
        validation_file=job.validation_file,
        integrations=[],
        metadata=dict(job.labels) or None,
        maas={
            "recipe": job.recipe,
            "report": job.report,
            "estimate": job.estimate,
            "progress": job.progress,
            "pausing": job.wish == "pause",
            "num_restarts": job.num_restarts,
            "receipt": None if receipt is None else dict(receipt),
        },
    )


def shown_event(event: JobEvent) -> EventObject:
    """Return an event as it is shown."""
    return EventObject(
        id=event.id,
        created_at=int(event.created_at),
        level=event.level,
        message=event.message,
        type=event.type,
        data=None if event.data is None else dict(event.data),
    )


def shown_checkpoint(checkpoint: JobCheckpoint) -> CheckpointObject:
    """Return a checkpoint as it is shown."""
    return CheckpointObject(
        id=checkpoint.id,
        created_at=int(checkpoint.created_at),
        fine_tuned_model_checkpoint=checkpoint.model_id,
        fine_tuning_job_id=checkpoint.job_id,
        step_number=checkpoint.step,
        metrics=dict(checkpoint.metrics),
    )
