"""The key that signs bundles: one for all homes on a store."""

import sqlalchemy as sa
from alembic import op

revision = "0090"
down_revision = "0080"


def upgrade() -> None:
    """Add its table; the key of a home's file is taken over by a process that can read it."""
    op.create_table(
        "signing_keys",
        sa.Column("id", sa.String(255), primary_key=True),
        sa.Column("public_key", sa.String(255), nullable=False),
        sa.Column("sealed_key", sa.String(1024), nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
    )
