"""What the store hands out: frozen records, free of any session."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from enum import StrEnum
from typing import Any


class DeploymentStatus(StrEnum):
    """What the controller last saw of a deployment."""

    PENDING = "pending"
    STARTING = "starting"
    RUNNING = "running"
    DEGRADED = "degraded"
    FAILED = "failed"
    REFUSED = "refused"
    DELETING = "deleting"


class ReplicaState(StrEnum):
    """Where a replica is in its life."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"


class Role(StrEnum):
    """What a user or a service account is; ``maas.store.roles`` says what each may do."""

    OWNER = "owner"
    DEVELOPER = "developer"
    BILLING = "billing"
    VIEWER = "viewer"


class Priority(StrEnum):
    """Whose requests go first in front of a saturated deployment."""

    ONLINE = "online"
    BATCH = "batch"
    BACKGROUND = "background"


class LimitScope(StrEnum):
    """Whose requests a limit counts together."""

    ORGANIZATION = "organization"
    PROJECT = "project"
    KEY = "key"
    MODEL = "model"


@dataclass(frozen=True)
class Organization:
    """A tenant: nothing of it is seen by another one."""

    id: str
    name: str
    created_at: float
    archived_at: float | None = None


@dataclass(frozen=True)
class Project:
    """What keys, files and jobs belong to.

    Attributes:
        weight: Share of a saturated deployment, relative to other projects.
        priority: Class of its requests in front of a saturated deployment.
    """

    id: str
    organization_id: str
    name: str
    created_at: float
    archived_at: float | None = None
    weight: int = 1
    priority: Priority = Priority.ONLINE


@dataclass(frozen=True)
class User:
    """A person in an organisation."""

    id: str
    organization_id: str
    email: str
    name: str
    role: Role
    created_at: float
    deleted_at: float | None = None


@dataclass(frozen=True)
class ProjectMember:
    """A user's role in one project."""

    project_id: str
    user_id: str
    role: Role
    created_at: float


@dataclass(frozen=True)
class ServiceAccount:
    """A program that has keys of a project."""

    id: str
    project_id: str
    name: str
    role: Role
    created_at: float
    deleted_at: float | None = None


@dataclass(frozen=True)
class Limit:
    """A limit: one for each scope, scope id and model. A number that is None limits nothing.

    Attributes:
        scope_id: Id of the organisation, project or key; the model's id for ``model``.
        model: The model it is about; None counts all models together.
        monthly_budget: Money in a calendar month, UTC.
    """

    id: str
    scope: LimitScope
    scope_id: str
    model: str | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrent_requests: int | None = None
    tokens_per_day: int | None = None
    monthly_budget: Decimal | None = None


@dataclass(frozen=True)
class ApiKey:
    """A key as stored: the secret itself is not here.

    Attributes:
        digest: Hex SHA-256 of salt and secret.
        scopes: ``inference``, ``organization`` (administers its organisation) or ``admin``
            (the operator: everything, everywhere). Of a device's key: ``device`` and, where it may
            ask a model, ``device_fallback``. Of a user's or service account's: none, its role
            decides.
        models: Models it may ask; none means all.
        endpoints: Routes it may use (``/v1/embeddings``); none means all.
        networks: Networks (CIDR) it is accepted from; none means all.
        expires_at: Epoch seconds from which on it is refused.
        replaced_by: The key that a rotation made in its place.
    """

    id: str
    project_id: str
    name: str
    salt: str
    digest: str
    scopes: tuple[str, ...]
    created_at: float
    revoked_at: float | None
    user_id: str | None = None
    service_account_id: str | None = None
    models: tuple[str, ...] = ()
    endpoints: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()
    expires_at: float | None = None
    replaced_by: str | None = None


@dataclass(frozen=True)
class Deployment:
    """A model that should run, and what the controller last saw of it.

    Attributes:
        options: Engine options as given (``url``, ``dtype``, ``max_model_len`` ...).
        retry_at: Epoch seconds before which a failed deployment is not started again.
    """

    id: str
    project_id: str
    model_id: str
    engine: str
    options: Mapping[str, Any]
    min_replicas: int
    max_replicas: int
    created_at: float
    deleted_at: float | None = None
    status: DeploymentStatus = DeploymentStatus.PENDING
    reason: str | None = None
    num_failures: int = 0
    retry_at: float | None = None

    @property
    def card_id(self) -> str:
        """The model whose card says how it runs: the base's, of a model that was tuned whole."""
        return str(self.options.get("base_model") or self.model_id)


@dataclass(frozen=True)
class Replica:
    """A running engine, alive until ``expires_at``.

    Attributes:
        url: Base URL of the engine's own server, without ``/v1``.
        engine_model: The name the engine knows the model by.
        kv_cache_usage: Share of the KV cache in use, 0 to 1.
        max_num_seqs: Requests it runs at a time; 0 where nobody knows.
    """

    id: str
    deployment_id: str
    url: str
    engine_model: str
    state: ReplicaState
    started_at: float
    expires_at: float
    adapters: tuple[str, ...] = ()
    num_running: int = 0
    num_waiting: int = 0
    kv_cache_usage: float = 0.0
    memory_bytes: int = 0
    max_num_seqs: int = 0


@dataclass(frozen=True)
class Alias:
    """A stable public name for a model."""

    name: str
    model_id: str


@dataclass(frozen=True)
class TunedName:
    """A tuned model, as gateways must know it.

    Attributes:
        id: Its public name.
        adapter_name: What engines know its adapter by; none where it has weights of its own.
    """

    id: str
    project_id: str
    base_model_id: str
    adapter_name: str | None
    is_published: bool
    created_at: float


@dataclass(frozen=True)
class DesiredState:
    """All that a gateway routes by, read in one transaction.

    Attributes:
        revision: Counter of changes; a gateway that holds it has seen everything up to it.
        replicas: Live leases only.
        organizations: Archived ones too, as with projects; users and service accounts only
            those that are not deleted.
    """

    revision: int
    keys: tuple[ApiKey, ...] = ()
    deployments: tuple[Deployment, ...] = ()
    aliases: tuple[Alias, ...] = ()
    replicas: tuple[Replica, ...] = field(default=())
    organizations: tuple[Organization, ...] = ()
    projects: tuple[Project, ...] = ()
    users: tuple[User, ...] = ()
    members: tuple[ProjectMember, ...] = ()
    service_accounts: tuple[ServiceAccount, ...] = ()
    limits: tuple[Limit, ...] = ()
    tuned_models: tuple[TunedName, ...] = ()
