"""A runner's desk: what it tells the store, and what it is asked to do.

A thread writes a heartbeat each second with all that was told since, so that a training step
never waits for the store. The answer says what is wished, or that the job is somebody else's.
"""

import logging
import threading
from collections.abc import Callable
from dataclasses import replace

from maas.core.errors import MaasError, StoreUnavailable, Superseded
from maas.store.job_records import Job, JobChange, Telling
from maas.store.jobs import JobRepository

log = logging.getLogger(__name__)

INTERVAL_S = 0.5


class JobDesk:
    """Writes for one runner.

    Args:
        jobs: The store.
        job: As it was taken.
        on_lost: Called once, from another thread, when the job is not this runner's any more.
    """

    def __init__(self, jobs: JobRepository, job: Job, on_lost: Callable[[], None]) -> None:
        self.job = job
        self._jobs = jobs
        self._on_lost = on_lost
        self._later = JobChange()
        self._lock = threading.Lock()
        self._writing = threading.RLock()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="job-heartbeat", daemon=True)

    def start(self) -> None:
        """Begin to send heartbeats."""
        self._thread.start()

    def close(self) -> None:
        """Send no more heartbeats, also none that is on its way.

        Before a transaction that this desk writes in: a heartbeat would wait for its end, and it
        for the heartbeat's.
        """
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join()

    @property
    def may_go_on(self) -> bool:
        """Whether nobody asked for a pause and the job is still this runner's."""
        return self.job.wish is None and not self._closed.is_set()

    def later(self, *tellings: Telling, progress: dict[str, object] | None = None) -> None:
        """Tell something with the next heartbeat."""
        with self._lock:
            self._later = replace(
                self._later,
                tellings=(*self._later.tellings, *tellings),
                progress=progress or self._later.progress,
            )

    def write(self, change: JobChange) -> Job:
        """Write now, after all that was told before. A goodbye is the last that is written.

        Raises:
            Superseded: The job is not this runner's any more.
            StoreUnavailable: The store is away.
        """
        with self._writing:
            with self._lock:
                before, self._later = self._later, JobChange()
            merged = replace(
                change,
                tellings=(*before.tellings, *change.tellings),
                progress=change.progress or before.progress,
            )
            try:
                self.job = self._jobs.write(self.job.id, self.job.attempt, merged)
            except StoreUnavailable:
                # Told again with what comes next.
                self.later(*before.tellings, progress=dict(before.progress or {}) or None)
                raise
            if change.is_released:
                # A heartbeat after the goodbye would make it look as if it had died.
                self._closed.set()
            return self.job

    def _beat(self) -> None:
        while not self._closed.wait(INTERVAL_S):
            try:
                with self._writing:
                    # It may have waited for the goodbye.
                    if not self._closed.is_set():
                        self.write(JobChange())
            except Superseded as error:
                log.warning("%s", error.message)
                self._closed.set()
                self._on_lost()
            except MaasError as error:
                log.warning("a heartbeat of job %s failed: %s", self.job.id, error.message)
