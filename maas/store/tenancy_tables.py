"""Tables of who may do what: organisations, projects, people, keys, limits, and the audit log."""

from decimal import Decimal
from typing import Any, ClassVar

from sqlalchemy import JSON, ForeignKey, LargeBinary, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from maas.store.money import Money
from maas.store.tables import Base


class OrganizationRow(Base):
    """A tenant."""

    __tablename__ = "organizations"
    __audit__: ClassVar[str | None] = "organization"
    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    created_at: Mapped[float]
    archived_at: Mapped[float | None]


class ProjectRow(Base):
    """A project owns keys, deployments and, later, files and jobs."""

    __tablename__ = "projects"
    __audit__: ClassVar[str | None] = "project"
    id: Mapped[str] = mapped_column(primary_key=True)
    organization_id: Mapped[str] = mapped_column(ForeignKey("organizations.id"))
    name: Mapped[str]
    created_at: Mapped[float]
    archived_at: Mapped[float | None]
    weight: Mapped[int]
    priority: Mapped[str]
    __table_args__ = (
        UniqueConstraint("organization_id", "name", name="uq_projects_organization_id_name"),
    )


class UserRow(Base):
    """A person in an organisation."""

    __tablename__ = "users"
    __audit__: ClassVar[str | None] = "user"
    id: Mapped[str] = mapped_column(primary_key=True)
    organization_id: Mapped[str] = mapped_column(ForeignKey("organizations.id"), index=True)
    email: Mapped[str]
    name: Mapped[str]
    role: Mapped[str]
    created_at: Mapped[float]
    deleted_at: Mapped[float | None]


class ProjectMemberRow(Base):
    """A user's role in one project."""

    __tablename__ = "project_members"
    __audit__: ClassVar[str | None] = "project.user"
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"), primary_key=True)
    user_id: Mapped[str] = mapped_column(ForeignKey("users.id"), primary_key=True, index=True)
    role: Mapped[str]
    created_at: Mapped[float]


class ServiceAccountRow(Base):
    """A program that has keys of a project."""

    __tablename__ = "service_accounts"
    __audit__: ClassVar[str | None] = "service_account"
    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"), index=True)
    name: Mapped[str]
    role: Mapped[str]
    created_at: Mapped[float]
    deleted_at: Mapped[float | None]


class ApiKeyRow(Base):
    """An API key: only its salted hash is here."""

    __tablename__ = "api_keys"
    __audit__: ClassVar[str | None] = "api_key"
    __audit_hidden__: ClassVar[frozenset[str]] = frozenset({"salt", "digest"})
    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"), index=True)
    name: Mapped[str]
    salt: Mapped[str]
    digest: Mapped[str]
    scopes: Mapped[list[str]]
    created_at: Mapped[float]
    revoked_at: Mapped[float | None]
    user_id: Mapped[str | None] = mapped_column(ForeignKey("users.id"), index=True)
    service_account_id: Mapped[str | None] = mapped_column(
        ForeignKey("service_accounts.id"), index=True
    )
    models: Mapped[list[str]]
    endpoints: Mapped[list[str]]
    networks: Mapped[list[str]]
    expires_at: Mapped[float | None]
    replaced_by: Mapped[str | None]


class LimitRow(Base):
    """A limit. ``model`` is empty for all models together: NULLs would not be unique."""

    __tablename__ = "limits"
    __audit__: ClassVar[str | None] = "rate_limit"
    id: Mapped[str] = mapped_column(primary_key=True)
    organization_id: Mapped[str | None] = mapped_column(ForeignKey("organizations.id"), index=True)
    project_id: Mapped[str | None] = mapped_column(ForeignKey("projects.id"), index=True)
    scope: Mapped[str]
    scope_id: Mapped[str]
    model: Mapped[str]
    requests_per_minute: Mapped[int | None]
    tokens_per_minute: Mapped[int | None]
    concurrent_requests: Mapped[int | None]
    tokens_per_day: Mapped[int | None]
    monthly_budget: Mapped[Decimal | None] = mapped_column(Money)
    __table_args__ = (UniqueConstraint("scope", "scope_id", "model", name="uq_limits_scope"),)


class AuditRow(Base):
    """One change of the control plane. Triggers refuse to change or remove a row."""

    __tablename__ = "audit_log"
    seq: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    at: Mapped[float]
    actor_kind: Mapped[str]
    actor_id: Mapped[str]
    request_id: Mapped[str]
    action: Mapped[str]
    resource: Mapped[str]
    resource_id: Mapped[str] = mapped_column(index=True)
    project_id: Mapped[str | None]
    organization_id: Mapped[str | None] = mapped_column(index=True)
    before: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    after: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    previous_hash: Mapped[str]
    hash: Mapped[str]


class AuditHeadRow(Base):
    """One row: the newest entry of the audit log, so that a removed end is noticed."""

    __tablename__ = "audit_head"
    id: Mapped[int] = mapped_column(primary_key=True)
    seq: Mapped[int]
    hash: Mapped[str]


class IdempotencyRow(Base):
    """The first answer to a request with an ``Idempotency-Key``; the body is sealed."""

    __tablename__ = "idempotency_keys"
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"), primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    api_key_id: Mapped[str]
    method: Mapped[str]
    path: Mapped[str]
    body_hash: Mapped[str]
    status: Mapped[int]
    headers: Mapped[dict[str, Any]]
    body: Mapped[bytes] = mapped_column(LargeBinary)
    created_at: Mapped[float] = mapped_column(index=True)
    completed_at: Mapped[float]
