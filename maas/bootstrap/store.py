"""The only place that wires things together."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maas.core.clock import Clock
from maas.core.settings import Settings, load_settings
from maas.store.adapters import AdapterRepository, TunedModelRepository
from maas.store.aliases import AliasRepository
from maas.store.clock import StoreClock
from maas.store.database import Database
from maas.store.deployments import DeploymentRepository
from maas.store.jobs import JobRepository
from maas.store.keys import KeyRepository
from maas.store.leases import LeaseRepository
from maas.store.replicas import ReplicaRepository
from maas.store.state import StateReader
from maas.store.tenancy import Tenancy, open_tenancy


@dataclass(frozen=True)
class Store:
    """The store's repositories over one database."""

    database: Database
    clock: Clock
    keys: KeyRepository
    deployments: DeploymentRepository
    replicas: ReplicaRepository
    aliases: AliasRepository
    leases: LeaseRepository
    state: StateReader
    tenancy: Tenancy
    jobs: JobRepository
    adapters: AdapterRepository
    tuned_models: TunedModelRepository


def resolve_settings(flags: Mapping[str, Any] | None = None) -> Settings:
    """Resolve the settings of this process from file, environment and flags."""
    return load_settings(flags=flags)


def open_store(settings: Settings) -> Store:
    """Open the store, making its tables where they are missing."""
    settings.home.mkdir(parents=True, exist_ok=True)
    database = Database(settings.resolved_database_url, settings.store)
    database.migrate(backups_dir=settings.backups_dir)
    clock = StoreClock(database)
    tenancy = open_tenancy(database, clock)
    return Store(
        database=database,
        clock=clock,
        keys=tenancy.keys,
        deployments=DeploymentRepository(database, clock),
        replicas=ReplicaRepository(database, clock),
        aliases=AliasRepository(database, clock),
        leases=LeaseRepository(database, clock),
        state=StateReader(database, clock),
        tenancy=tenancy,
        jobs=JobRepository(database, clock),
        adapters=AdapterRepository(database, clock),
        tuned_models=TunedModelRepository(database, clock),
    )


def save_settings(settings: Settings, *, name: str = "settings") -> Path:
    """Write the resolved settings where the platform's other processes read them.

    Args:
        settings: What to write.
        name: Of the file; processes with settings of their own have one of their own.
    """
    path = settings.home / "run" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.touch(mode=0o600)
    values = settings.model_dump(mode="json")
    # A dump masks secrets; the processes that fetch weights or open the store need them.
    for name, secret in (("hf_token", settings.hf_token), ("database_url", settings.database_url)):
        values[name] = secret and secret.get_secret_value()
    path.write_text(json.dumps(values, indent=2), encoding="utf-8")
    return path


def read_settings(path: Path) -> Settings:
    """Read what ``save_settings`` wrote."""
    return Settings.model_validate_json(path.read_text(encoding="utf-8"))
