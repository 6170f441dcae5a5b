"""Charges: what a tuned model was tuned from, so that its base's limits count them."""

import sqlalchemy as sa
from alembic import op

revision = "0080"
down_revision = "0070"


def upgrade() -> None:
    """Add the base, and let counters that lack charges of tuned models be counted anew."""
    # With a default: a gateway of the version before writes rows without it.
    op.add_column(
        "journal", sa.Column("base_model_id", sa.String(255), nullable=False, server_default="")
    )
    op.execute(
        "UPDATE journal SET base_model_id = "
        "(SELECT t.base_model_id FROM tuned_models t WHERE t.id = journal.model_id) "
        "WHERE model_id IN (SELECT id FROM tuned_models)"
    )
    # A counter that is not there is made of the journal. One that somebody holds a part of stays,
    # too low as it is, until its window ends.
    op.execute(
        "DELETE FROM counters WHERE leased = 0 "
        "AND (key LIKE 'tokens_per_day/%' OR key LIKE 'monthly_budget/%')"
    )
