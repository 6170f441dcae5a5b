"""The local Ray head: one process that starts Ray on loopback and watches it.

An operator with a cluster sets ``serving.ray_address`` and this process is not started.
Ray binds to the node's address, and refuses loopback on Linux unless told that there is no
cluster; the variables below say so (docs/adr/0003). Every Ray call needs a token, on loopback
too: other users of the machine are not the operator.
"""

import hashlib
import os
import secrets
import shutil
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil
import ray

from maas.core.errors import HostError
from maas.core.settings import Settings

_POLL_S = 0.5
_ESSENTIAL = ("gcs_server", "raylet")


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


def _session_dir(settings: Settings) -> Path:
    """Return Ray's folder: short, as its socket paths must stay under 108 bytes."""
    digest = hashlib.sha256(str(settings.home).encode()).hexdigest()[:8]
    path = Path(tempfile.gettempdir()) / f"maas-{os.getuid()}-{digest}"
    path.mkdir(mode=0o700, exist_ok=True)
    if path.lstat().st_uid != os.getuid():
        raise HostError(f"{path} belongs to another user; remove it or set TMPDIR")
    for session in path.glob("session_*"):
        shutil.rmtree(session, ignore_errors=True)
    return path


def run_head(settings: Settings) -> int:
    """Start Ray and stay until asked to stop or until Ray dies.

    Returns:
        0 after SIGTERM, 1 when Ray died.
    """
    stopping = threading.Event()
    path = address_file(settings)
    path.unlink(missing_ok=True)
    ray.init(
        "local",
        _node_ip_address="127.0.0.1",
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=settings.serving.object_store_bytes,
        _temp_dir=str(_session_dir(settings)),
        namespace="maas",
    )
    # After ray.init, which sets a handler of its own.
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    written = path.with_suffix(".new")
    written.write_text(ray.get_runtime_context().gcs_address, encoding="utf-8")
    written.replace(path)
    watched = [
        process
        for process in psutil.Process().children(recursive=True)
        if process.name() in _ESSENTIAL
    ]
    while not stopping.wait(_POLL_S):
        dead = [process.pid for process in watched if not _is_running(process)]
        if dead:
            sys.stderr.write(f"{time.ctime()} Ray lost process {dead}; starting it anew\n")
            break
    path.unlink(missing_ok=True)
    if stopping.is_set():
        ray.shutdown()
        return 0
    # A half-dead Ray hangs in its own shutdown: end every process of it here.
    for process in psutil.Process().children(recursive=True):
        process.kill()
    os._exit(1)


def _is_running(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
