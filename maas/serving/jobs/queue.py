"""The queue of jobs: gives each job that should move a runner, and takes strays away.

Nothing is remembered between passes that a restart would miss: jobs are rows, runners are
asked of the cluster. A runner belongs to one attempt at a job; one whose attempt is not the
newest any more, or whose job is over or paused, is a stray.
"""

import asyncio
import logging
from dataclasses import dataclass
from typing import Protocol

from maas.core.clock import Clock
from maas.core.errors import MaasError, Superseded
from maas.core.settings import FinetuneSettings
from maas.serving.backoff import backoff_s
from maas.store.job_records import ACTIVE, Job, JobChange, JobStatus, JobWish
from maas.store.jobs import JobRepository

log = logging.getLogger(__name__)

FIRST_RETRY_S = 1.0
MAX_RETRY_S = 60.0


@dataclass(frozen=True, order=True)
class RunnerId:
    """A runner: one attempt at one job."""

    job_id: str
    attempt: int


class Runners(Protocol):
    """What the queue needs of the cluster."""

    async def alive(self) -> frozenset[RunnerId]:
        """Return the runners there are, those just starting too."""
        ...

    async def start(self, runner: RunnerId) -> None:
        """Start a runner; returns before it is at work."""
        ...

    async def kill(self, runner: RunnerId) -> None:
        """End a runner and its workers, at once; fine if it is gone."""
        ...


class Policy(Protocol):
    """Whose turn it is, and whether the machine has room."""

    def rank(self, job: Job) -> int:
        """Return the place of a job's kind in the queue: the lowest first."""
        ...

    def refuse(self, job: Job, *, num_running: int) -> str | None:
        """Return why a job cannot start now; nothing if it can."""
        ...

    def must_yield(self, running: tuple[Job, ...]) -> str | None:
        """Return for what the jobs that train must make room; nothing if they need not."""
        ...

    def give_up(self, job: Job, ending: JobChange) -> None:
        """End a job whose runners keep failing, in one transaction with its money.

        Raises:
            Superseded: It ended or went on meanwhile.
        """
        ...


class JobQueue:
    """Gives jobs their runners, one pass at a time.

    Args:
        jobs: What should run.
        runners: What does.
        policy: Whether more can, and whose turn it is.
        clock: For pauses.
        settings: Limits and times.
    """

    def __init__(
        self,
        jobs: JobRepository,
        runners: Runners,
        *,
        policy: Policy,
        clock: Clock,
        settings: FinetuneSettings,
    ) -> None:
        self._jobs = jobs
        self._runners = runners
        self._policy = policy
        self._clock = clock
        self._settings = settings

    async def run(self, interval_s: float) -> None:
        """Run passes until cancelled; one that fails does not keep the next from its turn."""
        while True:
            try:
                await self.step()
            except MaasError as error:
                log.error("this pass over the jobs failed: %s", error.message)
            await asyncio.sleep(interval_s)

    async def step(self) -> None:
        """Run one pass. A job that fails does not keep the others from their turn."""
        unfinished = await asyncio.to_thread(self._jobs.unfinished)
        # Asked after the jobs: a runner that is not there by now was there for none of them.
        alive = await self._runners.alive()
        active = [job for job in unfinished if job.status in ACTIVE]
        for stray in alive - {_runner_of(job) for job in active}:
            await self._runners.kill(stray)
        at_work = [job for job in active if _runner_of(job) in alive]
        waiting = [job for job in active if _runner_of(job) not in alive]
        await self._watch(at_work)
        num_training = sum(job.status is JobStatus.RUNNING for job in at_work)
        num_training += sum(
            job.status is JobStatus.QUEUED and job.runner_seen_at is not None for job in at_work
        )
        for job in sorted(
            waiting, key=lambda job: (self._policy.rank(job), job.created_at, job.id)
        ):
            try:
                num_training += await self._give_runner(job, num_training)
            except Superseded:
                # Somebody cancelled or paused it since the rows were read.
                continue

    async def _watch(self, at_work: list[Job]) -> None:
        """Kill runners that went silent; ask those that train to make room where they must."""
        silent_since = self._clock.now() - self._settings.runner_timeout_s
        for job in at_work:
            if job.runner_seen_at is not None and job.runner_seen_at < silent_since:
                log.warning("the runner of %s went silent", job.id)
                await self._runners.kill(_runner_of(job))
        training = tuple(job for job in at_work if job.status is JobStatus.RUNNING)
        reason = await asyncio.to_thread(self._policy.must_yield, training) if training else None
        if reason:
            for job in training:
                log.info("job %s makes room: %s", job.id, reason)
                await asyncio.to_thread(self._jobs.ask, job.id, job.attempt, JobWish.YIELD)

    async def _give_runner(self, job: Job, num_training: int) -> int:
        """Start a runner if it is this job's turn; return how many more train then."""
        if job.runner_seen_at is not None:
            # It had one that did not say goodbye.
            said = (job.error or {}).get("message")
            await self._failed(job, f"its process ended ({said})" if said else "its process ended")
            return 0
        if (job.retry_at or 0.0) > self._clock.now():
            return 0
        trains = job.status is not JobStatus.VALIDATING_FILES
        if trains:
            reason = await asyncio.to_thread(self._policy.refuse, job, num_running=num_training)
            if reason:
                await asyncio.to_thread(self._jobs.wait, job.id, job.attempt, reason)
                return 0
        taken = await asyncio.to_thread(self._jobs.take, job.id, seen_attempt=job.attempt)
        try:
            await self._runners.start(_runner_of(taken))
        except MaasError as error:
            await self._failed(taken, error.message)
            return 0
        return int(trains)

    async def _failed(self, job: Job, reason: str) -> None:
        num_failures = job.num_failures + 1
        is_last = num_failures >= self._settings.max_failures
        pause = backoff_s(num_failures, first_s=FIRST_RETRY_S, max_s=MAX_RETRY_S)
        # First, as it refuses a runner that said goodbye since the rows were read. A controller
        # that dies after it costs one attempt more.
        failed = await asyncio.to_thread(
            self._jobs.failed_once,
            job.id,
            job.attempt,
            retry_at=None if is_last else self._clock.now() + pause,
            reason=reason,
        )
        if is_last:
            message = f"its trainer ended {num_failures} times without moving: {reason}"
            error = {"code": "training_failed", "message": message, "param": None}
            ending = JobChange(status=JobStatus.FAILED, error=error)
            await asyncio.to_thread(self._policy.give_up, failed, ending)


def _runner_of(job: Job) -> RunnerId:
    return RunnerId(job.id, job.attempt)
