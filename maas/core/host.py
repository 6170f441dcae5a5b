"""Checks of this machine before anything starts: standard library only."""

import errno
import os
import shutil
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from maas.core.errors import ConfigError, DiskFull, PortTaken

_PROC = Path("/proc")
_LISTEN = "0A"  # TCP_LISTEN in /proc/net/tcp
_LOCAL_ADDRESS, _STATE, _INODE = 1, 3, 9  # its columns


@dataclass(frozen=True)
class Listener:
    """A process that listens on a port.

    Attributes:
        command: Its command line, arguments separated by spaces.
    """

    pid: int
    command: str

    @property
    def name(self) -> str:
        """The program's name and the module or script it runs, without paths and arguments."""
        program, *arguments = self.command.split() or ["?"]
        words = [Path(word).name for word in arguments[:2] if not word.startswith("-")]
        return " ".join([Path(program).name, *words[:1]])


def check_port(host: str, port: int, *, setting: str) -> None:
    """Make sure that nothing listens on a port.

    Args:
        host: Address to listen on, or its name.
        port: 0 takes a free one and is never taken.
        setting: The variable that moves the port, for the message.

    Raises:
        PortTaken: Something listens there; the message names it where it can be found.
        ConfigError: The address is not this machine's, or the port is for root alone.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM
        )[0]
    except OSError as error:
        raise ConfigError(f"host {host!r} (MAAS_HOST): {error.strerror}") from error
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            raise _refusal(error, host, port, setting) from error


def _refusal(error: OSError, host: str, port: int, setting: str) -> ConfigError | PortTaken:
    if error.errno == errno.EADDRINUSE:
        holder = find_listener(port)
        by = f"by {holder.name} (pid {holder.pid})" if holder else "by a process of another user"
        return PortTaken(
            f"port {port} on {host} is taken {by}; stop it or set {setting} to another port",
            port=port,
        )
    if error.errno == errno.EACCES:
        return ConfigError(
            f"port {port} is for root alone; set {setting} to a port from 1024 up", param=setting
        )
    return ConfigError(f"{host} (MAAS_HOST) is no address of this machine: {error.strerror}")


def find_listener(port: int) -> Listener | None:
    """Return the process that listens on a port; none where there is none or it is hidden."""
    inodes = _listening_inodes(port)
    if not inodes:
        return None
    for folder in _PROC.iterdir():
        if folder.name.isdigit() and not inodes.isdisjoint(_open_sockets(folder)):
            return Listener(pid=int(folder.name), command=_command(folder))
    return None


def _listening_inodes(port: int) -> set[str]:
    suffix = f":{port:04X}"
    inodes: set[str] = set()
    for table in ("tcp", "tcp6"):
        try:
            lines = (_PROC / "net" / table).read_text(encoding="ascii").splitlines()[1:]
        except OSError:
            continue
        rows = [line.split() for line in lines]
        inodes |= {
            row[_INODE]
            for row in rows
            if row[_STATE] == _LISTEN and row[_LOCAL_ADDRESS].endswith(suffix)
        }
    return inodes


def _open_sockets(folder: Path) -> Iterator[str]:
    """Yield the inodes of a process's sockets; nothing where it is not ours to see or gone."""
    try:
        descriptors = list((folder / "fd").iterdir())
    except OSError:
        return
    for descriptor in descriptors:
        try:
            target = os.readlink(descriptor)
        except OSError:
            continue
        if target.startswith("socket:["):
            yield target.removeprefix("socket:[").removesuffix("]")


def _command(folder: Path) -> str:
    try:
        words = (folder / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return ""
    return " ".join(word.decode(errors="replace") for word in words if word)


def free_bytes(path: Path) -> int:
    """Return the room on a folder's disk; the folder need not exist yet."""
    existing = next(parent for parent in [path, *path.parents] if parent.exists())
    return shutil.disk_usage(existing).free


def check_disk(path: Path, *, need_bytes: int) -> None:
    """Make sure that a folder's disk has room.

    Raises:
        DiskFull: It has less than ``need_bytes``.
    """
    free = free_bytes(path)
    if free < need_bytes:
        raise DiskFull(
            f"{path}: {free / 2**30:.1f} GiB free, {need_bytes / 2**30:.1f} GiB needed; "
            "make room or set MAAS_HOME to another disk"
        )
