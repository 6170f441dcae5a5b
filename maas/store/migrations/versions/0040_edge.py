"""The edge: bundles, exports and what they tell."""

import sqlalchemy as sa
from alembic import op

revision = "0040"
down_revision = "0030"

_NAME = sa.String(255)
_LONG = sa.String(1024)
_TEXT = sa.String(4096)


def _id() -> sa.Column[str]:
    return sa.Column("id", _NAME, primary_key=True)


def _names(*names: str) -> list[sa.Column[str]]:
    return [sa.Column(name, _NAME, nullable=False) for name in names]


def _documents(*names: str, nullable: bool = False) -> list[sa.Column[object]]:
    return [sa.Column(name, sa.JSON, nullable=nullable) for name in names]


def _times(*names: str) -> list[sa.Column[float]]:
    return [sa.Column(name, sa.Float) for name in names]


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "bundles",
        _id(),
        sa.Column("project_id", _NAME, sa.ForeignKey("projects.id"), nullable=False, index=True),
        *_names("name", "model_id"),
        sa.Column("blob_key", _LONG, nullable=False),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        *_documents("manifest"),
        sa.Column("created_at", sa.Float, nullable=False),
        *_times("deleted_at"),
    )
    op.create_table(
        "exports",
        _id(),
        sa.Column("project_id", _NAME, sa.ForeignKey("projects.id"), nullable=False, index=True),
        *_names("key_id", "request_id", "model_id", "base_model_id", "name", "target"),
        *_names("precision"),
        sa.Column("created_at", sa.Float, nullable=False, index=True),
        sa.Column("status", _NAME, nullable=False, index=True),
        *_documents("quality", "labels", "estimate"),
        sa.Column("attempt", sa.BigInteger, nullable=False),
        sa.Column("num_failures", sa.BigInteger, nullable=False),
        *_times("runner_seen_at", "retry_at", "started_at", "finished_at"),
        *_documents("progress", "error", nullable=True),
        sa.Column("bundle_id", _NAME, sa.ForeignKey("bundles.id")),
    )
    op.create_table(
        "export_events",
        _id(),
        sa.Column("export_id", _NAME, sa.ForeignKey("exports.id"), nullable=False),
        *_names("key", "level"),
        sa.Column("message", _TEXT, nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.UniqueConstraint("export_id", "key", name="uq_export_events_export_id_key"),
    )
    op.create_index(
        "ix_export_events_export_id_created_at", "export_events", ["export_id", "created_at"]
    )
