"""Takes away the folders of runs that are over."""

import asyncio
import logging
import shutil
from pathlib import Path

from maas.core.errors import MaasError
from maas.store.jobs import JobRepository

log = logging.getLogger(__name__)

EVERY_S = 60.0


class Sweeper:
    """Sweeps, again and again.

    Args:
        jobs: Says which run folders are done with.
        jobs_dir: Where run folders are.
    """

    def __init__(self, jobs: JobRepository, jobs_dir: Path) -> None:
        self._jobs = jobs
        self._jobs_dir = jobs_dir

    async def run(self, interval_s: float = EVERY_S) -> None:
        """Sweep until cancelled; a sweep that fails does not keep the next from its turn."""
        while True:
            try:
                await asyncio.to_thread(self.sweep)
            except (MaasError, OSError) as error:
                log.error("a sweep failed, the next one tries again: %s", error)
            await asyncio.sleep(interval_s)

    def sweep(self) -> None:
        """Remove the folders of jobs that are over, or that nobody knows."""
        if not self._jobs_dir.is_dir():
            return
        for folder in self._jobs_dir.iterdir():
            job = self._jobs.find(folder.name)
            # Its runner may be in its last breath, and write there.
            is_done = job is None or (job.is_over and job.runner_seen_at is None)
            if is_done:
                shutil.rmtree(folder, ignore_errors=True)
