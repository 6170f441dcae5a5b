"""A platform that stops waits for runners to keep a checkpoint, but not for ever."""

import threading
import time

import pytest

from maas.serving.jobs.stopping import let_rest
from maas.store.job_records import JobChange, JobStatus, JobWish
from maas.store.jobs import JobRepository
from maas.store.state import ensure_project
from tests.unit.store.test_jobs import RUNNING, new_job


@pytest.fixture
def jobs(database, clock):
    return JobRepository(database, clock)


@pytest.fixture
def training(jobs, database, clock):
    job = jobs.create(new_job(ensure_project(database, clock)))
    taken = jobs.take(job.id, seen_attempt=0)
    return jobs.write(job.id, taken.attempt, RUNNING)


def test_runner_that_trains_is_asked_to_stop_and_waited_for(jobs, training):
    heard: list[JobWish | None] = []

    def run() -> None:
        while (job := jobs.write(training.id, training.attempt)).wish is None:
            time.sleep(0.02)
        heard.append(job.wish)
        time.sleep(0.3)
        resting = JobChange(status=JobStatus.QUEUED, is_released=True)
        jobs.write(training.id, training.attempt, resting)

    runner = threading.Thread(target=run)
    runner.start()
    let_rest(jobs, timeout_s=20)
    assert heard == [JobWish.STOP]
    assert jobs.find(training.id).status is JobStatus.QUEUED
    runner.join()


def test_runner_that_does_not_listen_is_waited_for_no_longer_than_that(jobs, training):
    began = time.monotonic()
    let_rest(jobs, timeout_s=0.4)
    assert 0.4 <= time.monotonic() - began < 5


def test_nobody_is_asked_where_nothing_trains(jobs, database, clock):
    job = jobs.create(new_job(ensure_project(database, clock)))
    began = time.monotonic()
    let_rest(jobs, timeout_s=20)
    assert time.monotonic() - began < 5
    assert jobs.find(job.id).wish is None
