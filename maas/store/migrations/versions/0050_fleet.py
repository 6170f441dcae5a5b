"""The fleet: groups, channels, devices, enrolment codes, rollouts and what devices tell."""

import sqlalchemy as sa
from alembic import op

revision = "0050"
down_revision = "0040"

_NAME = sa.String(255)


def _id() -> sa.Column[str]:
    return sa.Column("id", _NAME, primary_key=True)


def _names(*names: str, nullable: bool = False) -> list[sa.Column[str]]:
    return [sa.Column(name, _NAME, nullable=nullable) for name in names]


def _ref(name: str, target: str, *, nullable: bool = False, index: bool = False) -> sa.Column[str]:
    foreign = sa.ForeignKey(target)
    return sa.Column(name, _NAME, foreign, nullable=nullable, index=index or None)


def _documents(*names: str, nullable: bool = False) -> list[sa.Column[object]]:
    return [sa.Column(name, sa.JSON, nullable=nullable) for name in names]


def _floats(*names: str, nullable: bool = False) -> list[sa.Column[float]]:
    return [sa.Column(name, sa.Float, nullable=nullable) for name in names]


def _integers(*names: str) -> list[sa.Column[int]]:
    return [sa.Column(name, sa.BigInteger, nullable=False) for name in names]


def _lines() -> None:
    op.create_table(
        "device_groups",
        _id(),
        _ref("project_id", "projects.id"),
        *_names("name", "channel"),
        _ref("bundle_id", "bundles.id", nullable=True),
        *_names("fallback_model", nullable=True),
        *_integers("heartbeat_s"),
        *_documents("labels"),
        *_floats("created_at"),
        sa.UniqueConstraint("project_id", "name", name="uq_device_groups_project_id"),
    )
    op.create_table(
        "device_channels",
        _id(),
        _ref("project_id", "projects.id"),
        *_names("name"),
        _ref("bundle_id", "bundles.id", nullable=True),
        *_floats("created_at", "updated_at"),
        sa.UniqueConstraint("project_id", "name", name="uq_device_channels_project_id"),
    )


def _devices() -> None:
    op.create_table(
        "devices",
        _id(),
        _ref("project_id", "projects.id"),
        *_names("name", "group_name"),
        *_names("channel", nullable=True),
        _ref("bundle_id", "bundles.id", nullable=True),
        _ref("key_id", "api_keys.id"),
        *_documents("facts", "labels"),
        *_floats("created_at"),
        *_floats("retired_at", nullable=True),
        sa.UniqueConstraint("key_id", name="uq_devices_key_id"),
    )
    op.create_index("ix_devices_project_id_created_at", "devices", ["project_id", "created_at"])
    op.create_index("ix_devices_project_id_group_name", "devices", ["project_id", "group_name"])
    op.create_table(
        "device_states",
        sa.Column("device_id", _NAME, sa.ForeignKey("devices.id"), primary_key=True),
        *_floats("last_seen_at", "load_s", "prefill_tok_s", "decode_tok_s", nullable=True),
        *_names("bundle_id", nullable=True),
        *_documents("told"),
        *_documents("report", nullable=True),
    )
    op.create_table(
        "device_enrolment_codes",
        _id(),
        _ref("project_id", "projects.id", index=True),
        *_names("group_name", "digest"),
        *_names("name", "nonce_digest", nullable=True),
        *_documents("labels"),
        *_floats("created_at", "expires_at"),
        sa.Column("used_at", sa.Float, index=True),
        _ref("device_id", "devices.id", nullable=True),
        sa.Column("sealed_key", sa.String(1024)),
        sa.UniqueConstraint("digest", name="uq_device_enrolment_codes_digest"),
    )


def _rollouts() -> None:
    op.create_table(
        "device_rollouts",
        _id(),
        _ref("project_id", "projects.id"),
        *_names("channel"),
        sa.Column("status", _NAME, nullable=False, index=True),
        _ref("bundle_id", "bundles.id"),
        *_names("previous_bundle_id", nullable=True),
        *_documents("stages", "labels"),
        *_documents("counts", nullable=True),
        *_integers("min_reports", "attempt", "stage", "num_succeeded", "num_failed"),
        *_floats("max_failure_percent", "stage_began_at", "created_at", "updated_at"),
        *_floats("finished_at", nullable=True),
        sa.Column("reason", sa.String(1024)),
    )
    op.create_index(
        "ix_device_rollouts_project_id_channel", "device_rollouts", ["project_id", "channel"]
    )


def _told() -> None:
    op.create_table(
        "device_updates",
        sa.Column("device_id", _NAME, sa.ForeignKey("devices.id"), primary_key=True),
        sa.Column("bundle_id", _NAME, primary_key=True),
        sa.Column("attempt", sa.BigInteger, primary_key=True, autoincrement=False),
        _ref("rollout_id", "device_rollouts.id", nullable=True, index=True),
        sa.Column("is_success", sa.Boolean, nullable=False),
        *_names("phase", nullable=True),
        sa.Column("error", sa.String(4096)),
        *_floats("created_at"),
    )
    op.create_table(
        "device_events",
        _id(),
        _ref("device_id", "devices.id"),
        *_names("key", "level", "type"),
        *_floats("created_at"),
        sa.Column("message", sa.String(4096), nullable=False),
        *_documents("data"),
        sa.UniqueConstraint("device_id", "key", name="uq_device_events_device_id"),
    )
    op.create_index(
        "ix_device_events_device_id_created_at", "device_events", ["device_id", "created_at"]
    )


def upgrade() -> None:
    """Create the tables."""
    _lines()
    _devices()
    _rollouts()
    _told()
