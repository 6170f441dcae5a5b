"""How the platform's processes find Ray and get in, without importing it.

Every Ray call needs a token, on loopback too: other users of the machine are not the operator.
"""

import secrets
from pathlib import Path

from maas.core.settings import Settings


def address_file(settings: Settings) -> Path:
    """Return the file that holds the head's address while it runs."""
    return settings.home / "run" / "ray_address"


def cluster_address(settings: Settings) -> str | None:
    """Return the address of the Ray cluster to use, or none while it is not up."""
    if settings.serving.ray_address:
        return settings.serving.ray_address
    try:
        return address_file(settings).read_text(encoding="utf-8") or None
    except FileNotFoundError:
        return None


def ray_environment(settings: Settings) -> dict[str, str]:
    """Return the variables that every process of the local Ray needs, the driver's too."""
    if settings.serving.ray_address:
        return {}
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(settings.home / "run" / "ray.token"),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_enable_worker_prestart": "0",
        "RAY_prestart_worker_first_driver": "0",
        "RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "2",
        "RAY_memory_monitor_refresh_ms": "0",
        # Training has the lowest priority: beside busy engines its workers start in minutes.
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "600",
    }


def ensure_token(settings: Settings) -> None:
    """Make the token that Ray's processes show each other, readable by this user only."""
    path = settings.home / "run" / "ray.token"
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not path.exists():
        written = path.with_suffix(".new")
        written.touch(mode=0o600)
        written.write_text(secrets.token_hex(32), encoding="utf-8")
        written.replace(path)
