"""Jobs: how often a runner ended by itself."""

import sqlalchemy as sa
from alembic import op

revision = "0070"
down_revision = "0060"


def upgrade() -> None:
    """Add the count; of jobs that are there it is not known, and begins at 0."""
    # With a default: a gateway of the version before writes rows without it.
    op.add_column(
        "fine_tuning_jobs",
        sa.Column("num_restarts", sa.BigInteger, nullable=False, server_default="0"),
    )
