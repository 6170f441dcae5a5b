"""Exports: run-time adapters, shrinking, and what they cost."""

import sqlalchemy as sa
from alembic import op

revision = "0060"
down_revision = "0050"

_NAME = sa.String(255)


def upgrade() -> None:
    """Add the columns; what was exported before was merged, whole, and free."""
    for column in (
        sa.Column("adapter_mode", _NAME, nullable=False, server_default="merge"),
        sa.Column("adapters", sa.JSON, nullable=False, server_default="{}"),
        sa.Column("shrink", sa.JSON),
        sa.Column("used_s", sa.Float, nullable=False, server_default="0"),
    ):
        op.add_column("exports", column)
    # With a default: a gateway of the version before writes rows without it.
    op.add_column(
        "journal",
        sa.Column("export_milliseconds", sa.BigInteger, nullable=False, server_default="0"),
    )
