"""Before the platform stops: jobs that train keep a checkpoint of the step they are at."""

import time

from maas.store.job_records import Job, JobStatus, JobWish
from maas.store.jobs import JobRepository

_POLL_S = 0.1


def let_rest(jobs: JobRepository, timeout_s: float) -> None:
    """Ask every runner that trains to keep a checkpoint and leave; wait until they have.

    One that takes longer is ended with the rest, and goes on from its newest checkpoint.

    Args:
        jobs: Says which train.
        timeout_s: Longest wait in seconds.
    """
    training = [job for job in jobs.unfinished() if _is_training(job)]
    for job in training:
        jobs.ask(job.id, job.attempt, JobWish.STOP)
    give_up_at = time.monotonic() + timeout_s
    while training and time.monotonic() < give_up_at:
        time.sleep(_POLL_S)
        now = {job.id: job for job in jobs.unfinished() if _is_training(job)}
        training = [job for job in training if job.id in now]


def _is_training(job: Job) -> bool:
    is_at_work = job.status is JobStatus.RUNNING and job.runner_seen_at is not None
    return is_at_work and not job.is_publishing
