"""Fine-tuning: files, uploads, jobs, events, checkpoints, adapters, tuned models."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0030"
down_revision = "0020"

_NAME = sa.String(255)
_LONG = sa.String(1024)
_TEXT = sa.String(4096)


def _id() -> sa.Column[str]:
    return sa.Column("id", _NAME, primary_key=True)


def _names(*names: str) -> list[sa.Column[str]]:
    return [sa.Column(name, _NAME, nullable=False) for name in names]


def _maybe(kind: sa.types.TypeEngine[Any], *names: str) -> list[sa.Column[Any]]:
    return [sa.Column(name, kind) for name in names]


def _must(kind: sa.types.TypeEngine[Any], *names: str) -> list[sa.Column[Any]]:
    return [sa.Column(name, kind, nullable=False) for name in names]


def _of(table: str, name: str, *, nullable: bool = False, index: bool = True) -> sa.Column[str]:
    return sa.Column(name, _NAME, sa.ForeignKey(f"{table}.id"), nullable=nullable, index=index)


def upgrade() -> None:
    """Create the tables."""
    _files()
    _jobs()
    _models()


def _files() -> None:
    op.create_table(
        "files",
        _id(),
        _of("projects", "project_id"),
        *_must(_LONG, "filename", "blob_key"),
        *_names("purpose", "sha256", "status"),
        *_must(sa.BigInteger(), "size_bytes"),
        *_maybe(_TEXT, "status_details"),
        *_must(sa.Float(), "created_at"),
        sa.Column("expires_at", sa.Float, index=True),
        *_maybe(sa.Float(), "deleted_at"),
    )
    op.create_table(
        "uploads",
        _id(),
        _of("projects", "project_id"),
        *_must(_LONG, "filename"),
        *_names("purpose", "mime_type", "status"),
        *_must(sa.BigInteger(), "size_bytes"),
        *_must(sa.Float(), "created_at"),
        sa.Column("expires_at", sa.Float, nullable=False, index=True),
        *_maybe(sa.BigInteger(), "file_lifetime_s"),
        *_maybe(_NAME, "file_id"),
    )
    op.create_table(
        "upload_parts",
        _id(),
        _of("uploads", "upload_id"),
        *_must(sa.BigInteger(), "size_bytes"),
        *_names("sha256"),
        *_must(_LONG, "blob_key"),
        *_must(sa.Float(), "created_at"),
    )


def _jobs() -> None:
    op.create_table(
        "fine_tuning_jobs",
        _id(),
        _of("projects", "project_id"),
        *_names("key_id", "request_id", "model_id", "base_model_id", "training_file", "recipe"),
        sa.Column("created_at", sa.Float, nullable=False, index=True),
        sa.Column("status", _NAME, nullable=False, index=True),
        *_maybe(_NAME, "validation_file", "suffix", "wish", "fine_tuned_model"),
        *_must(sa.BigInteger(), "seed", "attempt", "num_failures"),
        *_maybe(sa.BigInteger(), "trained_tokens"),
        *_must(sa.JSON(), "method", "labels", "result_files"),
        *_maybe(sa.JSON(), "error", "report", "resolved", "estimate", "progress"),
        *_maybe(sa.Float(), "runner_seen_at", "retry_at", "started_at", "finished_at"),
        *_maybe(sa.Float(), "estimated_finish"),
    )
    op.create_table(
        "fine_tuning_events",
        _id(),
        _of("fine_tuning_jobs", "job_id", index=False),
        *_names("key", "level", "type"),
        *_must(_TEXT, "message"),
        *_must(sa.Float(), "created_at"),
        *_maybe(sa.JSON(), "data"),
        sa.UniqueConstraint("job_id", "key", name="uq_fine_tuning_events_job_id_key"),
    )
    op.create_index(
        "ix_fine_tuning_events_job_id_created_at", "fine_tuning_events", ["job_id", "created_at"]
    )
    op.create_table(
        "fine_tuning_checkpoints",
        _id(),
        _of("fine_tuning_jobs", "job_id", index=False),
        *_must(sa.BigInteger(), "step"),
        *_must(sa.JSON(), "metrics"),
        *_names("model_id"),
        *_must(sa.Float(), "created_at"),
        sa.UniqueConstraint("job_id", "step", name="uq_fine_tuning_checkpoints_job_id_step"),
    )


def _models() -> None:
    op.create_table(
        "adapters",
        _id(),
        sa.Column("base_model_id", _NAME, nullable=False, index=True),
        *_must(sa.BigInteger(), "r", "size_bytes"),
        *_must(sa.JSON(), "target_modules"),
        *_maybe(_TEXT, "problem"),
        *_must(sa.Float(), "created_at"),
        *_maybe(sa.Float(), "removed_at"),
    )
    op.create_table(
        "tuned_models",
        _id(),
        _of("projects", "project_id"),
        sa.Column("base_model_id", _NAME, nullable=False, index=True),
        _of("adapters", "adapter_id", nullable=True),
        _of("fine_tuning_jobs", "job_id", nullable=True),
        *_names("kind", "state"),
        *_maybe(_LONG, "weights_key"),
        *_maybe(sa.BigInteger(), "step"),
        *_must(sa.JSON(), "lineage", "licence"),
        *_maybe(sa.JSON(), "receipt"),
        *_must(sa.Float(), "created_at"),
        *_maybe(sa.Float(), "published_at", "deleted_at"),
    )
