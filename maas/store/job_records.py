"""What is known of a fine-tuning job, as frozen records."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from maas.store.finetune_tables import CheckpointRow, JobEventRow, JobRow


class JobStatus(StrEnum):
    """Where a job is; the words of the wire."""

    VALIDATING_FILES = "validating_files"
    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


TERMINAL = frozenset({JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED})
# A runner should be at work on these.
ACTIVE = frozenset({JobStatus.VALIDATING_FILES, JobStatus.QUEUED, JobStatus.RUNNING})


class JobWish(StrEnum):
    """What a runner should do next, other than go on."""

    PAUSE = "pause"
    YIELD = "yield"
    STOP = "stop"


@dataclass(frozen=True)
class NewJob:
    """What a job is made of.

    Attributes:
        model_id: The name that was asked for: a base model's or a tuned one's.
        base_model_id: The model whose weights are tuned.
        method: As on the wire: ``{"type": "supervised", "supervised": {"hyperparameters": ...}}``.
        recipe: Name of a file in ``finetune/``, without its ending.
        labels: ``metadata`` on the wire.
    """

    project_id: str
    key_id: str
    request_id: str
    model_id: str
    base_model_id: str
    training_file: str
    method: Mapping[str, Any]
    recipe: str
    seed: int
    validation_file: str | None = None
    suffix: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True)
class Job:
    """A job as it is now.

    Attributes:
        wish: What its runner was asked to do.
        attempt: Number of its newest runner; 0 before the first.
        runner_seen_at: When that runner was last heard of; none once it said goodbye.
        num_failures: Runners that ended without a goodbye since the job last moved.
        num_restarts: All that did.
        report: Of the data check (``maas.finetune.data``).
        resolved: Hyperparameters with every "auto" filled in.
        estimate: Cost and seconds, before it starts.
        progress: ``step``, ``num_steps``, ``loss``, ``tokens_per_s``, ``eta_s``,
            ``trained_tokens`` ...
        trained_tokens: Final count; none before the end.
    """

    id: str
    project_id: str
    key_id: str
    request_id: str
    created_at: float
    model_id: str
    base_model_id: str
    training_file: str
    validation_file: str | None
    suffix: str | None
    seed: int
    method: Mapping[str, Any]
    recipe: str
    labels: Mapping[str, str]
    status: JobStatus
    wish: JobWish | None
    attempt: int
    runner_seen_at: float | None
    num_failures: int
    num_restarts: int
    retry_at: float | None
    started_at: float | None
    finished_at: float | None
    estimated_finish: float | None
    error: Mapping[str, Any] | None
    fine_tuned_model: str | None
    trained_tokens: int | None
    result_files: tuple[str, ...]
    report: Mapping[str, Any] | None
    resolved: Mapping[str, Any] | None
    estimate: Mapping[str, Any] | None
    progress: Mapping[str, Any] | None

    @property
    def is_over(self) -> bool:
        """Whether nothing of it will change any more."""
        return self.status in TERMINAL

    @property
    def is_publishing(self) -> bool:
        """Whether it has trained: it waits for an engine, and holds no room."""
        return (self.progress or {}).get("phase") == "publishing"


@dataclass(frozen=True)
class JobEvent:
    """Something a job told.

    Attributes:
        key: Told once under this key, however often a runner starts again.
        type: ``message`` or ``metrics``.
    """

    id: str
    job_id: str
    key: str
    created_at: float
    level: str
    message: str
    type: str
    data: Mapping[str, Any] | None


@dataclass(frozen=True)
class Telling:
    """An event to be told, under a key of its own within the job."""

    key: str
    message: str
    level: str = "info"
    data: Mapping[str, Any] | None = None

    @property
    def type(self) -> str:
        """What the wire calls it."""
        return "message" if self.data is None else "metrics"


@dataclass(frozen=True)
class JobCheckpoint:
    """A state of the weights that is kept and answers under a name of its own."""

    id: str
    job_id: str
    step: int
    metrics: Mapping[str, Any]
    model_id: str
    created_at: float


@dataclass(frozen=True)
class JobChange:
    """What a runner writes at once. A field that is None is left as it is.

    Attributes:
        is_released: The runner is done with the job, and says so: it did not die.
        retry_at: When the next runner may begin.
    """

    status: JobStatus | None = None
    tellings: tuple[Telling, ...] = ()
    report: Mapping[str, Any] | None = None
    resolved: Mapping[str, Any] | None = None
    estimate: Mapping[str, Any] | None = None
    progress: Mapping[str, Any] | None = None
    estimated_finish: float | None = None
    error: Mapping[str, Any] | None = None
    fine_tuned_model: str | None = None
    trained_tokens: int | None = None
    result_files: tuple[str, ...] | None = None
    is_released: bool = False
    retry_at: float | None = None


def record_of(row: JobRow) -> Job:
    """Return the row as a frozen record."""
    values: dict[str, Any] = {name: getattr(row, name) for name in Job.__dataclass_fields__}
    values["status"] = JobStatus(row.status)
    values["wish"] = None if row.wish is None else JobWish(row.wish)
    values["result_files"] = tuple(row.result_files)
    return Job(**values)


def event_of(row: JobEventRow) -> JobEvent:
    """Return the row as a frozen record."""
    return JobEvent(**{name: getattr(row, name) for name in JobEvent.__dataclass_fields__})


def checkpoint_of(row: CheckpointRow) -> JobCheckpoint:
    """Return the row as a frozen record."""
    fields = JobCheckpoint.__dataclass_fields__
    return JobCheckpoint(**{name: getattr(row, name) for name in fields})
