"""The ledger: prices, journal, counters, grants, spenders; webhooks that hear of it."""

import sqlalchemy as sa
from alembic import op

revision = "0020"
down_revision = "0010"

_NAME = sa.String(255)


def _counts(*names: str) -> list[sa.Column[int]]:
    return [sa.Column(name, sa.BigInteger, nullable=False) for name in names]


def _names(*names: str) -> list[sa.Column[str]]:
    return [sa.Column(name, _NAME, nullable=False) for name in names]


def upgrade() -> None:
    """Create the tables; replicas say how much they hold."""
    op.add_column(
        "replicas",
        sa.Column("max_num_seqs", sa.BigInteger, nullable=False, server_default="0"),
    )
    op.create_table(
        "prices",
        sa.Column("id", _NAME, primary_key=True),
        sa.Column("model_id", _NAME, nullable=False, index=True),
        *_names("tier", "source", "currency"),
        sa.Column("rates", sa.JSON, nullable=False),
        sa.Column("valid_from", sa.Float, nullable=False),
    )
    op.create_table(
        "journal",
        sa.Column("id", _NAME, primary_key=True),
        sa.Column("at", sa.Float, nullable=False),
        *_names("organization_id", "project_id", "key_id", "request_id"),
        *_names("endpoint", "model_id", "tier"),
        *_counts("num_requests", "input_tokens", "cached_tokens", "output_tokens"),
        *_counts("training_tokens", "gpu_milliseconds", "storage_mib_hours"),
        *_names("price_id", "currency"),
        *_counts("amount"),
        *_names("exactness"),
    )
    op.create_index("ix_journal_at", "journal", ["at"])
    for owner in ("organization_id", "project_id", "key_id"):
        op.create_index(f"ix_journal_{owner}_at", "journal", [owner, "at"])
    op.create_table(
        "counters",
        sa.Column("key", _NAME, primary_key=True),
        sa.Column("window_end", sa.Float, index=True),
        *_counts("used", "leased"),
    )
    op.create_table(
        "grants",
        sa.Column("counter_key", _NAME, primary_key=True),
        sa.Column("spender_id", _NAME, primary_key=True, index=True),
        *_counts("amount"),
    )
    op.create_table(
        "spenders",
        sa.Column("id", _NAME, primary_key=True),
        *_counts("segment", "position"),
        sa.Column("seen_at", sa.Float, nullable=False),
    )
    op.create_table(
        "webhooks",
        sa.Column("id", _NAME, primary_key=True),
        sa.Column(
            "organization_id",
            _NAME,
            sa.ForeignKey("organizations.id"),
            nullable=False,
            index=True,
        ),
        *_names("name"),
        sa.Column("url", sa.String(2048), nullable=False),
        sa.Column("secret", sa.String(512), nullable=False),
        sa.Column("events", sa.JSON, nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("deleted_at", sa.Float),
    )
    op.create_table(
        "webhook_deliveries",
        sa.Column("id", _NAME, primary_key=True),
        sa.Column("webhook_id", _NAME, sa.ForeignKey("webhooks.id"), nullable=False, index=True),
        *_names("event"),
        sa.Column("body", sa.String(16_384), nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        *_counts("num_attempts"),
        sa.Column("next_at", sa.Float, index=True),
        sa.Column("delivered_at", sa.Float),
        sa.Column("error", sa.String(1024)),
    )
    op.create_table(
        "budget_alerts",
        sa.Column("limit_id", _NAME, primary_key=True),
        sa.Column("month", _NAME, primary_key=True),
        sa.Column("percent", sa.BigInteger, primary_key=True),
        sa.Column("at", sa.Float, nullable=False),
    )
