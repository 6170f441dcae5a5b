"""What the store hands out: frozen records, free of any session."""

from collections.abc import Mapping
from dataclasses import dataclass, field
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


@dataclass(frozen=True)
class ApiKey:
    """A key as stored: the secret itself is not here.

    Attributes:
        digest: Hex SHA-256 of salt and secret.
        scopes: ``inference`` or ``admin``.
    """

    id: str
    project_id: str
    name: str
    salt: str
    digest: str
    scopes: tuple[str, ...]
    created_at: float
    revoked_at: float | None


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


@dataclass(frozen=True)
class Replica:
    """A running engine, alive until ``expires_at``.

    Attributes:
        url: Base URL of the engine's own server, without ``/v1``.
        engine_model: The name the engine knows the model by.
        kv_cache_usage: Share of the KV cache in use, 0 to 1.
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


@dataclass(frozen=True)
class Alias:
    """A stable public name for a model."""

    name: str
    model_id: str


@dataclass(frozen=True)
class DesiredState:
    """All that a gateway routes by, read in one transaction.

    Attributes:
        revision: Counter of changes; a gateway that holds it has seen everything up to it.
        replicas: Live leases only.
    """

    revision: int
    keys: tuple[ApiKey, ...] = ()
    deployments: tuple[Deployment, ...] = ()
    aliases: tuple[Alias, ...] = ()
    replicas: tuple[Replica, ...] = field(default=())
