"""Alembic's entry: runs the migrations on the connection ``Database.migrate`` hands over."""

from alembic import context

from maas.store import (
    edge_tables,
    finetune_tables,
    fleet_tables,
    ledger_tables,
    tenancy_tables,
    webhook_tables,
)

# They share one metadata, and fill it when they are imported.
TABLES = (
    tenancy_tables,
    ledger_tables,
    webhook_tables,
    finetune_tables,
    edge_tables,
    fleet_tables,
)

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=TABLES[0].Base.metadata,
    render_as_batch=True,
    compare_type=True,
)
with context.begin_transaction():
    context.run_migrations()
