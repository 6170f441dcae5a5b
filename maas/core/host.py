"""Checks of this machine before anything starts: standard library only."""

import shutil
import socket
from pathlib import Path

from maas.core.errors import DiskFull, PortTaken


def check_port(host: str, port: int, *, setting: str) -> None:
    """Make sure that nothing listens on a port.

    Raises:
        PortTaken: Something does; the message names the setting to change.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise PortTaken(
                f"port {port} on {host} is taken ({error.strerror}); stop what listens there "
                f"or set {setting} to another port"
            ) from error


def check_disk(path: Path, *, need_bytes: int) -> None:
    """Make sure that a folder's disk has room.

    Raises:
        DiskFull: It has less than ``need_bytes``.
    """
    existing = next(parent for parent in [path, *path.parents] if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < need_bytes:
        raise DiskFull(
            f"{path}: {free / 2**30:.1f} GiB free, {need_bytes / 2**30:.1f} GiB needed; "
            "make room or set MAAS_HOME to another disk"
        )
