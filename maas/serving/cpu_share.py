"""Keeps the replicas of one deployment on one machine off each other's processors."""

import fcntl
import os
from pathlib import Path

from maas.engines.tuning import share_cpus


class CpuShare:
    """One of ``num_shares`` equal parts of this process's processors, held until ``release``.

    A part is a locked file, so the kernel gives back what a killed replica held. Ray Serve's
    own ranks would not do: they are handed on while the engine of their last holder still runs.

    Attributes:
        cpu_ids: The processors of this part; none means no part of its own (only one was
            wanted, or all are held because a predecessor still drains): all may be used.

    Args:
        folder: Where the files are, on a file system of this machine.
        deployment_id: Whose replicas share.
        num_shares: Most replicas there can be: what a running engine was given at its start
            cannot be taken from it when another one starts.
    """

    def __init__(self, folder: Path, deployment_id: str, *, num_shares: int) -> None:
        self.cpu_ids: tuple[int, ...] = ()
        self._descriptor: int | None = None
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for index in range(num_shares):
            descriptor = os.open(folder / f"{deployment_id}-{index}", os.O_CREAT | os.O_RDWR, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                continue
            self._descriptor = descriptor
            if num_shares > 1 and hasattr(os, "sched_getaffinity"):
                own = tuple(sorted(os.sched_getaffinity(0)))
                self.cpu_ids = share_cpus(own, index=index, num_replicas=num_shares)
            return

    def release(self) -> None:
        """Let another replica have it; doing so twice is fine."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
