"""The first tables: projects, keys, deployments, replicas, aliases, leases."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_NAME = sa.String(255)


def upgrade() -> None:
    """Create the tables and the one revision row."""
    revisions = op.create_table(
        "revision",
        sa.Column("id", sa.BigInteger, primary_key=True),
        sa.Column("value", sa.BigInteger, nullable=False),
    )
    op.bulk_insert(revisions, [{"id": 1, "value": 0}])
    op.create_table(
        "projects",
        sa.Column("id", _NAME, primary_key=True),
        sa.Column("name", _NAME, nullable=False, unique=True),
        sa.Column("created_at", sa.Float, nullable=False),
    )
    op.create_table(
        "api_keys",
        sa.Column("id", _NAME, primary_key=True),
        sa.Column("project_id", _NAME, sa.ForeignKey("projects.id"), nullable=False),
        sa.Column("name", _NAME, nullable=False),
        sa.Column("salt", _NAME, nullable=False),
        sa.Column("digest", _NAME, nullable=False),
        sa.Column("scopes", sa.JSON, nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("revoked_at", sa.Float),
    )
    op.create_table(
        "deployments",
        sa.Column("id", _NAME, primary_key=True),
        sa.Column("project_id", _NAME, sa.ForeignKey("projects.id"), nullable=False),
        sa.Column("model_id", _NAME, nullable=False, index=True),
        sa.Column("engine", _NAME, nullable=False),
        sa.Column("options", sa.JSON, nullable=False),
        sa.Column("min_replicas", sa.BigInteger, nullable=False),
        sa.Column("max_replicas", sa.BigInteger, nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("deleted_at", sa.Float),
        sa.Column("status", _NAME, nullable=False),
        sa.Column("reason", sa.String(4096)),
        sa.Column("num_failures", sa.BigInteger, nullable=False),
        sa.Column("retry_at", sa.Float),
    )
    op.create_table(
        "replicas",
        sa.Column("id", _NAME, primary_key=True),
        sa.Column(
            "deployment_id", _NAME, sa.ForeignKey("deployments.id"), nullable=False, index=True
        ),
        sa.Column("url", _NAME, nullable=False),
        sa.Column("engine_model", _NAME, nullable=False),
        sa.Column("adapters", sa.JSON, nullable=False),
        sa.Column("state", _NAME, nullable=False),
        sa.Column("num_running", sa.BigInteger, nullable=False),
        sa.Column("num_waiting", sa.BigInteger, nullable=False),
        sa.Column("kv_cache_usage", sa.Float, nullable=False),
        sa.Column("memory_bytes", sa.BigInteger, nullable=False),
        sa.Column("started_at", sa.Float, nullable=False),
        sa.Column("expires_at", sa.Float, nullable=False),
    )
    op.create_table(
        "aliases",
        sa.Column("name", _NAME, primary_key=True),
        sa.Column("model_id", _NAME, nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
    )
    op.create_table(
        "leases",
        sa.Column("name", _NAME, primary_key=True),
        sa.Column("holder", _NAME, nullable=False),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.Float, nullable=False),
    )
