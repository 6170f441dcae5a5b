"""Runs one engine and lets none of its processes outlive it. Standard library only.

Started by ``maas.engines.process`` as ``launcher.py LOG MAX_LOG_BYTES CPUS COMMAND...``; it
stays between the platform and the engine because a child cannot be trusted to end with its
parent, and vLLM's own children least of all:

- standard input is a lifeline: at end-of-file (the platform closed it or died, ``kill -9``
  included) the whole tree is killed;
- as a child subreaper it stays the ancestor of every grandchild whose parent died;
- the engine gets SIGKILL from the kernel when this process dies;
- when the engine's first process ends, what is left of its tree is killed.

The tree runs on the processors CPUS (comma-separated ids, or ``all``). SIGTERM is passed to
the engine. The engine's output is copied to the log, which is cut over to ``LOG.1`` when it
reaches MAX_LOG_BYTES. The exit code is the engine's.
"""

import ctypes
import os
import select
import signal
import sys
import time
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_CHUNK = 1 << 16
_KILL_INTERVAL_S = 0.02


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


class RotatingLog:
    """A file that starts anew at a size, keeping the one before it as ``<name>.1``."""

    def __init__(self, path: Path, *, max_bytes: int) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._open()

    def _open(self) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self._fd = os.open(self._path, flags, 0o640)
        self._size = os.fstat(self._fd).st_size

    def write(self, data: bytes) -> None:
        """Append; a full disk loses log lines, never the engine."""
        if self._size and self._size + len(data) > self._max_bytes:
            os.close(self._fd)
            os.replace(self._path, f"{self._path}.1")
            self._open()
        try:
            self._size += os.write(self._fd, data)
        except OSError:
            return


def _parents() -> dict[int, int]:
    parents: dict[int, int] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                stat = Path("/proc", entry, "stat").read_bytes()
            except OSError:  # it ended while we looked
                continue
            # The name, in brackets, may itself hold brackets and spaces.
            parents[int(entry)] = int(stat.rpartition(b")")[2].split()[1])
    return parents


def _descendants(root: int) -> set[int]:
    parents, found = _parents(), set[int]()
    frontier = {root}
    while frontier:
        frontier = {pid for pid, parent in parents.items() if parent in frontier} - found
        found |= frontier
    return found


def _reap() -> bool:
    """Collect children that ended; say whether any child is left."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return False
    return True


def _kill_tree() -> None:
    """Kill every descendant and wait until none is left."""
    while _reap():
        for pid in _descendants(os.getpid()):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(_KILL_INTERVAL_S)


def _spawn(command: list[str], output: int) -> int:
    launcher = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    try:
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != launcher:
            os._exit(1)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.execvp(command[0], command)  # noqa: S606  (no shell is the point)
    except OSError as error:
        os.write(output, f"cannot start {command[0]}: {error}\n".encode())
    os._exit(127)


def _watch(engine: int, output: int, wakeup: int, log: RotatingLog) -> int:
    """Copy output until the engine ends or the lifeline breaks; return the exit code."""
    watched = [0, output, wakeup]
    while True:
        readable = select.select(watched, [], [])[0]
        if output in readable:
            data = os.read(output, _CHUNK)
            if data:
                log.write(data)
            else:
                watched.remove(output)
        if wakeup in readable:
            os.read(wakeup, 512)
            pid, status = os.waitpid(engine, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
        if 0 in readable and not os.read(0, _CHUNK):
            return -signal.SIGKILL


def _drain(output: int, log: RotatingLog) -> None:
    os.set_blocking(output, False)
    try:
        while data := os.read(output, _CHUNK):
            log.write(data)
    except BlockingIOError:
        return


def main(arguments: list[str]) -> int:
    """Run the engine until it ends or nobody wants it any more."""
    log = RotatingLog(Path(arguments[0]), max_bytes=int(arguments[1]))
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    if arguments[2] != "all" and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, [int(cpu) for cpu in arguments[2].split(",")])
    wakeup_read, wakeup_write = os.pipe()
    os.set_blocking(wakeup_write, False)
    signal.set_wakeup_fd(wakeup_write, warn_on_full_buffer=False)
    output_read, output_write = os.pipe()

    engine = 0
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: os.kill(engine, signal.SIGTERM) if engine else None)
    engine = _spawn(arguments[3:], output_write)
    os.close(output_write)
    code = _watch(engine, output_read, wakeup_read, log)
    _kill_tree()
    _drain(output_read, log)
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
