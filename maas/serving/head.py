"""The local Ray head: one process that starts Ray on loopback and watches it.

An operator with a cluster sets ``serving.ray_address`` and this process is not started.
Ray binds to the node's address, and refuses loopback on Linux unless told that there is no
cluster; the variables of ``maas.serving.cluster`` say so (docs/adr/0003).
"""

import contextlib
import hashlib
import os
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
from maas.serving.cluster import address_file

_POLL_S = 0.5
_ESSENTIAL = ("gcs_server", "raylet")


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
        if _name_of(process) in _ESSENTIAL
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
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    os._exit(1)


def _name_of(process: psutil.Process) -> str:
    try:
        return process.name()
    except psutil.NoSuchProcess:
        return ""


def _is_running(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
