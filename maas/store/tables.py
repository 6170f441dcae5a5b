"""Tables of what runs. Times are seconds since the epoch; JSON columns hold lists and objects."""

from typing import Any, ClassVar

from sqlalchemy import JSON, BigInteger, Float, ForeignKey, MetaData
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from maas.store.text import ShortText


class Base(DeclarativeBase):
    """Root of all tables. Constraint names are fixed so that migrations can name them.

    Attributes:
        __audit__: What the audit log calls a row of this table; none is not in the log.
        __audit_hidden__: Columns that never go into it.
        __audit_ignored__: Columns whose change alone is no entry.
    """

    __audit__: ClassVar[str | None] = None
    __audit_hidden__: ClassVar[frozenset[str]] = frozenset()
    __audit_ignored__: ClassVar[frozenset[str]] = frozenset()

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(column_0_label)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map: ClassVar[dict[Any, Any]] = {
        dict[str, Any]: JSON,
        list[str]: JSON,
        int: BigInteger,
        float: Float,  # double precision on PostgreSQL
        str: ShortText(255),
    }


class RevisionRow(Base):
    """One row: a counter that every change of desired state moves on by one."""

    __tablename__ = "revision"
    id: Mapped[int] = mapped_column(primary_key=True)
    value: Mapped[int]


class DeploymentRow(Base):
    """What should run (first half) and what the controller last saw of it (second half)."""

    __tablename__ = "deployments"
    __audit__: ClassVar[str | None] = "deployment"
    # What the controller saw is no change of the control plane.
    __audit_ignored__: ClassVar[frozenset[str]] = frozenset(
        {"status", "reason", "num_failures", "retry_at"}
    )
    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    model_id: Mapped[str] = mapped_column(index=True)
    engine: Mapped[str]
    options: Mapped[dict[str, Any]]
    min_replicas: Mapped[int]
    max_replicas: Mapped[int]
    created_at: Mapped[float]
    deleted_at: Mapped[float | None]
    status: Mapped[str]
    reason: Mapped[str | None] = mapped_column(ShortText(4096))
    num_failures: Mapped[int]
    retry_at: Mapped[float | None]


class ReplicaRow(Base):
    """A heartbeat lease: a row past ``expires_at`` counts as gone."""

    __tablename__ = "replicas"
    id: Mapped[str] = mapped_column(primary_key=True)
    deployment_id: Mapped[str] = mapped_column(ForeignKey("deployments.id"), index=True)
    url: Mapped[str]
    engine_model: Mapped[str]
    adapters: Mapped[list[str]]
    state: Mapped[str]
    num_running: Mapped[int]
    num_waiting: Mapped[int]
    kv_cache_usage: Mapped[float]
    memory_bytes: Mapped[int]
    max_num_seqs: Mapped[int]
    started_at: Mapped[float]
    expires_at: Mapped[float]


class AliasRow(Base):
    """A stable public name; what is behind it can change."""

    __tablename__ = "aliases"
    __audit__: ClassVar[str | None] = "alias"
    name: Mapped[str] = mapped_column(primary_key=True)
    model_id: Mapped[str]
    created_at: Mapped[float]


class LeaseRow(Base):
    """Who holds a role (the leading controller) or is alive (a gateway), until when."""

    __tablename__ = "leases"
    name: Mapped[str] = mapped_column(primary_key=True)
    holder: Mapped[str]
    revision: Mapped[int]
    expires_at: Mapped[float]
