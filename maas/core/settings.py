"""The platform's settings: defaults < ``maas.toml`` < ``MAAS_*`` < flags, unknown keys refused.

Resolved once, in ``maas.bootstrap``, and passed down. Nothing else reads the environment.
"""

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self, cast

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError

from maas.core.errors import ConfigError

ENV_PREFIX = "MAAS_"
# Of `maas-edge`, which may be used in the same shell.
_DEVICE_PREFIX = "MAAS_EDGE_"
CONFIG_FILE = "maas.toml"
_Layer = dict[str, Any]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class GatewaySettings(_Section):
    """The gateway's data plane."""

    max_body_bytes: int = Field(default=8 * 2**20, gt=0)
    """Largest request body in bytes; a larger one is a 413."""
    max_json_depth: int = Field(default=64, gt=0)
    """Deepest nesting of a request body; a deeper one is a 400."""
    body_timeout_s: float = Field(default=30.0, gt=0)
    """Seconds a request body may take to arrive; a slower one is a 408."""
    connect_timeout_s: float = Field(default=2.0, gt=0)
    """Seconds to wait for a connection to an engine."""
    idle_timeout_s: float = Field(default=300.0, gt=0)
    """Seconds an engine may stay silent within one answer before it counts as dead."""
    snapshot_interval_s: float = Field(default=0.25, gt=0)
    """Seconds between two readings of routes and keys from the store."""
    max_pool_connections: int = Field(default=4096, gt=0)
    """Connections kept to all engines together."""
    max_file_bytes: int = Field(default=512 * 2**20, gt=0)
    """Largest file of ``/v1/files`` in bytes; a larger one comes in parts."""
    max_part_bytes: int = Field(default=64 * 2**20, gt=0)
    """Largest part of ``/v1/uploads`` in bytes."""
    max_upload_bytes: int = Field(default=8 * 2**30, gt=0)
    """Largest file that comes in parts, in bytes."""
    upload_timeout_s: float = Field(default=3600.0, gt=0)
    """Seconds a file may take to arrive; between two pieces of it ``body_timeout_s``."""
    webhooks_allow_private: bool = False
    """Whether webhooks may be sent to addresses that are not on the public internet."""


class ServingSettings(_Section):
    """Replicas and the controller that keeps them."""

    heartbeat_interval_s: float = Field(default=1.0, gt=0)
    """Seconds between two heartbeats of a replica."""
    lease_ttl_s: float = Field(default=5.0, gt=0)
    """Seconds after the last heartbeat at which a replica counts as gone."""
    reconcile_interval_s: float = Field(default=1.0, gt=0)
    """Seconds between two passes of the reconciler."""
    start_timeout_s: float = Field(default=900.0, gt=0)
    """Seconds an engine may take to become ready."""
    hang_timeout_s: float = Field(default=60.0, gt=0)
    """Seconds an engine may hold running requests without producing a token."""
    drain_timeout_s: float = Field(default=30.0, gt=0)
    """Seconds a replica waits for running requests before it stops."""
    max_backoff_s: float = Field(default=60.0, gt=0)
    """Longest pause between two starts of a deployment that fails."""
    sweep_interval_s: float = Field(default=60.0, gt=0)
    """Seconds between two removals of the bytes of files that were deleted or expired."""
    ray_address: str | None = None
    """Address of an existing Ray cluster; none means: start one on loopback."""
    object_store_bytes: int = Field(default=80 * 2**20, ge=76 * 2**20)
    """Ray's shared memory. Small: no model bytes pass through it."""


class StoreSettings(_Section):
    """Connections to the store; SQLite uses none of these but ``num_backups``."""

    pool_size: int = Field(default=8, gt=0)
    """Most connections one process keeps to PostgreSQL."""
    connect_timeout_s: int = Field(default=5, ge=2)
    """Seconds to wait for a connection to PostgreSQL."""
    statement_timeout_s: float = Field(default=30.0, gt=0)
    """Seconds one statement may take before it is ended."""
    lock_timeout_s: float = Field(default=10.0, gt=0)
    """Seconds a change waits for those before it; one that stands still for half of it ends."""
    num_backups: int = Field(default=5, gt=0)
    """Copies of a SQLite store that are kept in ``home``/backups; one is made before an upgrade."""


class FinetuneSettings(_Section):
    """Fine-tuning jobs."""

    recipes_dir: Path = Path(__file__).resolve().parents[2] / "finetune"
    """Folder of recipes; by default the one beside the package in a checkout."""
    max_running_jobs: int = Field(default=1, gt=0)
    """Jobs that train at a time; the others wait in the queue."""
    max_unfinished_jobs: int = Field(default=100, gt=0)
    """Jobs of one project that are not over; another one is refused."""
    num_workers: int = Field(default=1, gt=0)
    """Workers of one job, on as many GPUs where there are some."""
    strategy: Literal["ddp", "fsdp"] = "ddp"
    """Of several workers: ``ddp``, each holds all weights; ``fsdp``, each holds a part of them."""
    max_failures: int = Field(default=5, gt=0)
    """Times in a row that a trainer may end without having moved before its job fails."""
    runner_timeout_s: float = Field(default=60.0, gt=0)
    """Seconds a job's runner may be silent before it is replaced."""
    yield_pause_s: float = Field(default=60.0, gt=0)
    """Seconds a job waits after it made room for serving."""
    stop_timeout_s: float = Field(default=5.0, ge=0)
    """Seconds that ``maas up`` waits, when it stops, for jobs to keep a checkpoint."""
    publish_timeout_s: float = Field(default=300.0, gt=0)
    """Seconds a replica may take to load a new adapter."""


class Settings(_Section):
    """Everything an operator can set."""

    home: Path = Path("~/.maas")
    """State: database, blobs, models, keys, logs."""
    host: str = "127.0.0.1"
    """Address the gateway listens on."""
    port: int = Field(default=8080, ge=0, le=65535)
    """Port of the gateway."""
    metrics_port: int = Field(default=9464, ge=0, le=65535)
    """Port of the Prometheus metrics."""
    database_url: SecretStr | None = None
    """``postgresql://USER:PASSWORD@HOST:PORT/NAME``; none means SQLite in ``home``."""
    models_dir: Path = Path(__file__).resolve().parents[2] / "models"
    """Folder of model cards; by default the one beside the package in a checkout."""
    model: str | None = "smollm2-135m-instruct"
    """Model deployed at the first start; ``none`` deploys nothing."""
    engine: str | None = None
    """Engine of that model; none takes onnx where there is no GPU and the card names it, else the
    card's first."""
    allow_remote_code: bool = False
    """Let cards that say ``trust_remote_code: true`` run code from their weights."""
    allow_pickle: bool = False
    """Let cards that say ``allow_pickle: true`` load pickled weights."""
    hf_token: SecretStr | None = None
    """Token for hf:// sources; sent to ``hf_endpoint`` only."""
    hf_endpoint: str = "https://huggingface.co"
    """Model hub that hf:// sources come from; a mirror speaks the same protocol."""
    s3_endpoint: str | None = None
    """S3 service of s3:// addresses; none means AWS."""
    storage_url: str | None = None
    """Where files and adapters are kept: ``s3://bucket/prefix``; none: ``home``/blobs."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """What the platform's own logs say."""
    gateway: GatewaySettings = GatewaySettings()
    serving: ServingSettings = ServingSettings()
    store: StoreSettings = StoreSettings()
    finetune: FinetuneSettings = FinetuneSettings()

    @property
    def resolved_database_url(self) -> str:
        """The URL of the store. It may hold a password: hand it to the store, show it nobody."""
        if self.database_url is not None:
            return self.database_url.get_secret_value()
        return f"sqlite:///{self.home / 'maas.db'}"

    @property
    def has_store(self) -> bool:
        """Whether a store is named, or was made here: a platform's state is in it."""
        return self.database_url is not None or (self.home / "maas.db").exists()

    @property
    def backups_dir(self) -> Path:
        """Folder of copies of the store, made before each upgrade."""
        return self.home / "backups"

    @property
    def gateway_url(self) -> str:
        """Where this machine reaches the gateway, whatever addresses it listens on."""
        # Every address includes loopback; it is not one that can be asked.
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    @property
    def weights_dir(self) -> Path:
        """Folder of prepared weights, one folder a model."""
        return self.home / "models"

    def resolved(self) -> Self:
        """Return the same settings with absolute paths, ``~`` filled in."""
        paths = {"home": self.home, "models_dir": self.models_dir}
        absolute = {name: path.expanduser().absolute() for name, path in paths.items()}
        recipes = self.finetune.recipes_dir.expanduser().absolute()
        finetune = self.finetune.model_copy(update={"recipes_dir": recipes})
        return self.model_copy(update={**absolute, "finetune": finetune})

    @property
    def jobs_dir(self) -> Path:
        """Folder of what jobs work on, one folder a job; all nodes of a cluster must share it."""
        return self.home / "jobs"

    @property
    def adapters_dir(self) -> Path:
        """Folder of this machine's copies of adapters, which engines read."""
        return self.home / "adapters"

    @property
    def forms_dir(self) -> Path:
        """Folder of ONNX forms of weights, which the onnx engine reads."""
        return self.home / "onnx"

    @property
    def tuned_weights_dir(self) -> Path:
        """Folder of this machine's copies of weights that were tuned whole."""
        return self.home / "weights"

    @property
    def ledger_dir(self) -> Path:
        """Folder of the gateways' write-ahead logs."""
        return self.home / "ledger"

    @property
    def logs_dir(self) -> Path:
        """Folder of logs, one file a process."""
        return self.home / "logs"


def _environment_layer(environ: Mapping[str, str]) -> dict[str, Any]:
    layer: dict[str, Any] = {}
    for name, value in environ.items():
        if not name.startswith(ENV_PREFIX) or name.startswith(_DEVICE_PREFIX):
            continue
        node = layer
        *parents, leaf = name.removeprefix(ENV_PREFIX).lower().split("__")
        for parent in parents:
            below = node.setdefault(parent, {})
            if not isinstance(below, dict):
                raise _both_value_and_section(parent)
            node = cast("_Layer", below)
        if isinstance(node.get(leaf), dict):
            raise _both_value_and_section(leaf)
        node[leaf] = value
    return layer


def _both_value_and_section(name: str) -> ConfigError:
    variable = ENV_PREFIX + name.upper()
    return ConfigError(
        f"{variable} and {variable}__... are both set; keep the one that docs/operators.md names",
        param=name,
    )


def _merge(base: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        if isinstance(below, dict) and isinstance(value, Mapping):
            merged[key] = _merge(cast("_Layer", below), cast("_Layer", value))
        else:
            merged[key] = value
    return merged


def _file_layer(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}", file=str(path)) from error


def load_settings(
    *,
    flags: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
    config_file: Path | None = None,
) -> Settings:
    """Resolve the settings.

    Args:
        flags: Values given on the command line; ``None`` values are skipped.
        environ: Variables to read ``MAAS_*`` from; the process's own by default.
        config_file: TOML file; ``maas.toml`` in the working folder by default.

    Raises:
        ConfigError: A key is unknown or a value is out of range; the message names it.
    """
    merged = _file_layer(config_file or Path(CONFIG_FILE))
    merged = _merge(merged, _environment_layer(os.environ if environ is None else environ))
    given = {key: value for key, value in (flags or {}).items() if value is not None}
    merged = _merge(merged, given)
    if str(merged.get("model", "")).lower() in {"none", ""} and "model" in merged:
        merged["model"] = None
    try:
        settings = Settings.model_validate(merged)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        variable = ENV_PREFIX + name.upper().replace(".", "__")
        raise ConfigError(
            f"setting {name!r} ({variable}): {first['msg']}; see docs/operators.md for the names",
            param=name,
        ) from error
    return settings.resolved()
