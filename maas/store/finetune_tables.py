"""Tables of fine-tuning: files, jobs, what they tell, and what comes of them."""

from typing import Any, ClassVar

from sqlalchemy import ForeignKey, Index, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from maas.store.tables import Base
from maas.store.text import ShortText


class FileRow(Base):
    """An uploaded file; its bytes are a blob, until they are gone and ``blob_key`` is empty."""

    __tablename__ = "files"
    __audit__: ClassVar[str | None] = "file"
    __audit_ignored__: ClassVar[frozenset[str]] = frozenset({"blob_key"})
    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"), index=True)
    filename: Mapped[str] = mapped_column(ShortText(1024))
    purpose: Mapped[str]
    size_bytes: Mapped[int]
    sha256: Mapped[str]
    blob_key: Mapped[str] = mapped_column(ShortText(1024))
    status: Mapped[str]
    status_details: Mapped[str | None] = mapped_column(ShortText(4096))
    created_at: Mapped[float]
    expires_at: Mapped[float | None] = mapped_column(index=True)
    deleted_at: Mapped[float | None]


class UploadRow(Base):
    """A file that comes in parts."""

    __tablename__ = "uploads"
    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"), index=True)
    filename: Mapped[str] = mapped_column(ShortText(1024))
    purpose: Mapped[str]
    mime_type: Mapped[str]
    size_bytes: Mapped[int]
    status: Mapped[str]
    created_at: Mapped[float]
    expires_at: Mapped[float] = mapped_column(index=True)
    file_lifetime_s: Mapped[int | None]
    file_id: Mapped[str | None]


class UploadPartRow(Base):
    """One part of an upload; its bytes are a blob until the upload is complete."""

    __tablename__ = "upload_parts"
    id: Mapped[str] = mapped_column(primary_key=True)
    upload_id: Mapped[str] = mapped_column(ForeignKey("uploads.id"), index=True)
    size_bytes: Mapped[int]
    sha256: Mapped[str]
    blob_key: Mapped[str] = mapped_column(ShortText(1024))
    created_at: Mapped[float]


class JobRow(Base):
    """A fine-tuning job: what was asked for, what was wished since, how it fares.

    ``attempt`` counts runners: what an earlier one writes is refused. ``num_failures`` counts those
    that ended by themselves since the job last moved, ``num_restarts`` all of them.
    """

    __tablename__ = "fine_tuning_jobs"
    __audit__: ClassVar[str | None] = "fine_tuning.job"
    # What a runner saw is no change of the control plane; status and wish are.
    __audit_ignored__: ClassVar[frozenset[str]] = frozenset(
        {
            *("attempt", "runner_seen_at", "num_failures", "num_restarts", "retry_at"),
            *(
                "progress",
                "report",
                "resolved",
                "estimate",
                "estimated_finish",
                "result_files",
                "trained_tokens",
            ),
        }
    )
    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"), index=True)
    key_id: Mapped[str]
    request_id: Mapped[str]
    created_at: Mapped[float] = mapped_column(index=True)
    model_id: Mapped[str]
    base_model_id: Mapped[str]
    training_file: Mapped[str]
    validation_file: Mapped[str | None]
    suffix: Mapped[str | None]
    seed: Mapped[int]
    method: Mapped[dict[str, Any]]
    recipe: Mapped[str]
    labels: Mapped[dict[str, Any]]
    status: Mapped[str] = mapped_column(index=True)
    wish: Mapped[str | None]
    attempt: Mapped[int]
    runner_seen_at: Mapped[float | None]
    num_failures: Mapped[int]
    num_restarts: Mapped[int]
    retry_at: Mapped[float | None]
    started_at: Mapped[float | None]
    finished_at: Mapped[float | None]
    estimated_finish: Mapped[float | None]
    error: Mapped[dict[str, Any] | None]
    fine_tuned_model: Mapped[str | None]
    trained_tokens: Mapped[int | None]
    result_files: Mapped[list[str]]
    report: Mapped[dict[str, Any] | None]
    resolved: Mapped[dict[str, Any] | None]
    estimate: Mapped[dict[str, Any] | None]
    progress: Mapped[dict[str, Any] | None]


class JobEventRow(Base):
    """Something a job told, once: a runner that starts again tells it under the same key."""

    __tablename__ = "fine_tuning_events"
    id: Mapped[str] = mapped_column(primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("fine_tuning_jobs.id"))
    key: Mapped[str]
    created_at: Mapped[float]
    level: Mapped[str]
    message: Mapped[str] = mapped_column(ShortText(4096))
    type: Mapped[str]
    data: Mapped[dict[str, Any] | None]
    __table_args__ = (
        UniqueConstraint("job_id", "key", name="uq_fine_tuning_events_job_id_key"),
        # Each telling asks for the newest one, and lists are in this order.
        Index("ix_fine_tuning_events_job_id_created_at", "job_id", "created_at"),
    )


class CheckpointRow(Base):
    """A state of the weights during a job that is kept, and served under its own name."""

    __tablename__ = "fine_tuning_checkpoints"
    id: Mapped[str] = mapped_column(primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("fine_tuning_jobs.id"))
    step: Mapped[int]
    metrics: Mapped[dict[str, Any]]
    model_id: Mapped[str]
    created_at: Mapped[float]
    __table_args__ = (
        UniqueConstraint("job_id", "step", name="uq_fine_tuning_checkpoints_job_id_step"),
    )


class AdapterRow(Base):
    """A LoRA adapter by its content: the same bytes are the same adapter, whoever brought them.

    ``removed_at`` says that its bytes were given up, as no model needs it; ``size_bytes`` is 0
    once they are gone.
    """

    __tablename__ = "adapters"
    id: Mapped[str] = mapped_column(primary_key=True)
    base_model_id: Mapped[str] = mapped_column(index=True)
    r: Mapped[int]
    target_modules: Mapped[list[str]]
    size_bytes: Mapped[int]
    problem: Mapped[str | None] = mapped_column(ShortText(4096))
    created_at: Mapped[float]
    removed_at: Mapped[float | None]


class TunedModelRow(Base):
    """A tuned model: the public name of an adapter, or of weights of its own.

    ``state`` is ``candidate`` until its receipt is good, then ``published``; or ``refused``.
    """

    __tablename__ = "tuned_models"
    __audit__: ClassVar[str | None] = "model"
    __audit_ignored__: ClassVar[frozenset[str]] = frozenset({"receipt", "weights_key"})
    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"), index=True)
    base_model_id: Mapped[str] = mapped_column(index=True)
    kind: Mapped[str]
    adapter_id: Mapped[str | None] = mapped_column(ForeignKey("adapters.id"), index=True)
    weights_key: Mapped[str | None] = mapped_column(ShortText(1024))
    job_id: Mapped[str | None] = mapped_column(ForeignKey("fine_tuning_jobs.id"), index=True)
    step: Mapped[int | None]
    state: Mapped[str]
    lineage: Mapped[dict[str, Any]]
    licence: Mapped[dict[str, Any]]
    receipt: Mapped[dict[str, Any] | None]
    created_at: Mapped[float]
    published_at: Mapped[float | None]
    deleted_at: Mapped[float | None]
