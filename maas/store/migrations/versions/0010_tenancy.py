"""Organisations, users, service accounts, limits, the audit log; richer projects and keys."""

import sqlalchemy as sa
from alembic import op

from maas.core.ids import new_id

revision = "0010"
down_revision = "0001"

_NAME = sa.String(255)
DEFAULT_ORGANIZATION = "default"
FIRST_HASH = "0" * 64


def upgrade() -> None:
    """Create the tables; what is there already goes into the organisation ``default``."""
    organizations = op.create_table(
        "organizations",
        sa.Column("id", _NAME, primary_key=True),
        sa.Column("name", _NAME, nullable=False, unique=True),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("archived_at", sa.Float),
    )
    _extend_projects(organizations)
    _create_people()
    _extend_keys()
    _create_limits()
    _create_audit_log()
    _create_idempotency_keys()


def _extend_projects(organizations: sa.Table) -> None:
    connection = op.get_bind()
    oldest = connection.execute(sa.text("SELECT min(created_at) FROM projects")).scalar()
    with op.batch_alter_table("projects") as batch:
        batch.add_column(sa.Column("organization_id", _NAME))
        batch.add_column(sa.Column("archived_at", sa.Float))
        batch.add_column(sa.Column("weight", sa.BigInteger, nullable=False, server_default="1"))
        batch.add_column(sa.Column("priority", _NAME, nullable=False, server_default="online"))
        batch.drop_constraint("uq_projects_name", type_="unique")
    if oldest is not None:
        organization_id = new_id("org")
        op.bulk_insert(
            organizations,
            [{"id": organization_id, "name": DEFAULT_ORGANIZATION, "created_at": oldest}],
        )
        op.execute(
            sa.text("UPDATE projects SET organization_id = :id").bindparams(id=organization_id)
        )
    with op.batch_alter_table("projects") as batch:
        batch.alter_column("organization_id", existing_type=_NAME, nullable=False)
        batch.alter_column("weight", existing_type=sa.BigInteger, server_default=None)
        batch.alter_column("priority", existing_type=_NAME, server_default=None)
        batch.create_foreign_key(
            "fk_projects_organization_id_organizations",
            "organizations",
            ["organization_id"],
            ["id"],
        )
        batch.create_unique_constraint(
            "uq_projects_organization_id_name", ["organization_id", "name"]
        )


def _create_people() -> None:
    op.create_table(
        "users",
        sa.Column("id", _NAME, primary_key=True),
        sa.Column(
            "organization_id", _NAME, sa.ForeignKey("organizations.id"), nullable=False, index=True
        ),
        sa.Column("email", _NAME, nullable=False),
        sa.Column("name", _NAME, nullable=False),
        sa.Column("role", _NAME, nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("deleted_at", sa.Float),
    )
    op.create_table(
        "project_members",
        sa.Column("project_id", _NAME, sa.ForeignKey("projects.id"), primary_key=True),
        sa.Column("user_id", _NAME, sa.ForeignKey("users.id"), primary_key=True, index=True),
        sa.Column("role", _NAME, nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
    )
    op.create_table(
        "service_accounts",
        sa.Column("id", _NAME, primary_key=True),
        sa.Column("project_id", _NAME, sa.ForeignKey("projects.id"), nullable=False, index=True),
        sa.Column("name", _NAME, nullable=False),
        sa.Column("role", _NAME, nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("deleted_at", sa.Float),
    )


def _extend_keys() -> None:
    lists = ("models", "endpoints", "networks")
    with op.batch_alter_table("api_keys") as batch:
        batch.add_column(sa.Column("user_id", _NAME))
        batch.add_column(sa.Column("service_account_id", _NAME))
        for name in lists:
            batch.add_column(sa.Column(name, sa.JSON, nullable=False, server_default="[]"))
        batch.add_column(sa.Column("expires_at", sa.Float))
        batch.add_column(sa.Column("replaced_by", _NAME))
    with op.batch_alter_table("api_keys") as batch:
        for name in lists:
            batch.alter_column(name, existing_type=sa.JSON, server_default=None)
        batch.create_foreign_key("fk_api_keys_user_id_users", "users", ["user_id"], ["id"])
        batch.create_foreign_key(
            "fk_api_keys_service_account_id_service_accounts",
            "service_accounts",
            ["service_account_id"],
            ["id"],
        )
    for name in ("project_id", "user_id", "service_account_id"):
        op.create_index(f"ix_api_keys_{name}", "api_keys", [name])


def _create_limits() -> None:
    op.create_table(
        "limits",
        sa.Column("id", _NAME, primary_key=True),
        sa.Column("organization_id", _NAME, sa.ForeignKey("organizations.id"), index=True),
        sa.Column("project_id", _NAME, sa.ForeignKey("projects.id"), index=True),
        sa.Column("scope", _NAME, nullable=False),
        sa.Column("scope_id", _NAME, nullable=False),
        sa.Column("model", _NAME, nullable=False),
        sa.Column("requests_per_minute", sa.BigInteger),
        sa.Column("tokens_per_minute", sa.BigInteger),
        sa.Column("concurrent_requests", sa.BigInteger),
        sa.Column("tokens_per_day", sa.BigInteger),
        sa.Column("monthly_budget", sa.BigInteger),
        sa.UniqueConstraint("scope", "scope_id", "model", name="uq_limits_scope"),
    )


def _create_audit_log() -> None:
    op.create_table(
        "audit_log",
        sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("at", sa.Float, nullable=False),
        sa.Column("actor_kind", _NAME, nullable=False),
        sa.Column("actor_id", _NAME, nullable=False),
        sa.Column("request_id", _NAME, nullable=False),
        sa.Column("action", _NAME, nullable=False),
        sa.Column("resource", _NAME, nullable=False),
        sa.Column("resource_id", _NAME, nullable=False, index=True),
        sa.Column("project_id", _NAME),
        sa.Column("organization_id", _NAME, index=True),
        sa.Column("before", sa.JSON),
        sa.Column("after", sa.JSON),
        sa.Column("previous_hash", _NAME, nullable=False),
        sa.Column("hash", _NAME, nullable=False),
    )
    heads = op.create_table(
        "audit_head",
        sa.Column("id", sa.BigInteger, primary_key=True),
        sa.Column("seq", sa.BigInteger, nullable=False),
        sa.Column("hash", _NAME, nullable=False),
    )
    op.bulk_insert(heads, [{"id": 1, "seq": 0, "hash": FIRST_HASH}])
    if op.get_bind().dialect.name == "sqlite":
        _guard_sqlite()
    else:
        _guard_postgres()


def _guard_sqlite() -> None:
    for change in ("UPDATE", "DELETE"):
        op.execute(
            f"CREATE TRIGGER audit_log_{change.lower()} BEFORE {change} ON audit_log "
            "BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END"
        )
    op.execute(
        "CREATE TRIGGER audit_head_delete BEFORE DELETE ON audit_head "
        "BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END"
    )
    op.execute(
        "CREATE TRIGGER audit_head_update BEFORE UPDATE ON audit_head "
        "WHEN NEW.seq <= OLD.seq "
        "BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END"
    )


def _guard_postgres() -> None:
    op.execute(
        "CREATE FUNCTION refuse_audit_change() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION 'the audit log is append-only'; END $$"
    )
    for table, changes in (
        ("audit_log", "UPDATE OR DELETE OR TRUNCATE"),
        ("audit_head", "DELETE OR TRUNCATE"),
    ):
        op.execute(
            f"CREATE TRIGGER {table}_append_only BEFORE {changes} ON {table} "
            "FOR EACH STATEMENT EXECUTE FUNCTION refuse_audit_change()"
        )
    op.execute(
        "CREATE TRIGGER audit_head_forward BEFORE UPDATE ON audit_head FOR EACH ROW "
        "WHEN (NEW.seq <= OLD.seq) EXECUTE FUNCTION refuse_audit_change()"
    )


def _create_idempotency_keys() -> None:
    op.create_table(
        "idempotency_keys",
        sa.Column("project_id", _NAME, sa.ForeignKey("projects.id"), primary_key=True),
        sa.Column("key", _NAME, primary_key=True),
        sa.Column("api_key_id", _NAME, nullable=False),
        sa.Column("method", _NAME, nullable=False),
        sa.Column("path", _NAME, nullable=False),
        sa.Column("body_hash", _NAME, nullable=False),
        sa.Column("status", sa.BigInteger, nullable=False),
        sa.Column("headers", sa.JSON, nullable=False),
        sa.Column("body", sa.LargeBinary, nullable=False),
        sa.Column("created_at", sa.Float, nullable=False, index=True),
        sa.Column("completed_at", sa.Float, nullable=False),
    )
