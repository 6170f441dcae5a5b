"""Engine processes that nobody watches any more: found by a tag in their environment.

The launcher ends an engine with the platform. What slips through (an engine's grandchild
after both its parent and the launcher were killed) still carries the tag it inherited.
"""

from collections.abc import Iterator
from pathlib import Path

import psutil

TAG_VARIABLE = "MAASPROC"
_ENDED = (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess)


def tag_of(home: Path, replica_id: str) -> str:
    """Return the tag of one replica's processes."""
    return f"{home.absolute()}:{replica_id}"


def _tagged(home: Path, replica_id: str) -> Iterator[psutil.Process]:
    wanted = tag_of(home, replica_id)
    for process in psutil.process_iter():
        try:
            tag = process.environ().get(TAG_VARIABLE, "")
        except (*_ENDED, OSError):
            continue
        if tag == wanted or (not replica_id and tag.startswith(wanted)):
            yield process


def find_orphans(home: Path, replica_id: str = "") -> list[psutil.Process]:
    """Return the engine processes of this ``MAAS_HOME``, or of one replica of it.

    What a tagged process started belongs to it, whatever that has done to its environment.
    """
    found = {process.pid: process for process in _tagged(home, replica_id)}
    for process in list(found.values()):
        try:
            found |= {child.pid: child for child in process.children(recursive=True)}
        except psutil.NoSuchProcess:
            continue
    return list(found.values())


def kill_orphans(home: Path, replica_id: str = "") -> list[int]:
    """Kill the engine processes of this ``MAAS_HOME``, or of one replica; return their ids.

    Call it for a whole home only where no platform runs on it: it does not tell a watched
    engine from a forgotten one.
    """
    killed: list[int] = []
    # A process may start another while we look: go on until a look finds none.
    while found := [p for p in find_orphans(home, replica_id) if p.pid not in killed]:
        for process in found:
            killed.append(process.pid)
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(found, timeout=5.0)
    return killed
