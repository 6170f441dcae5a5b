"""A runner's desk: what it tells, and that its goodbye is the last of it."""

import threading
import time

import pytest

from maas.serving.jobs import desk as desks
from maas.serving.jobs.desk import JobDesk
from maas.store.database import Database
from maas.store.job_records import JobChange, JobStatus, Telling
from maas.store.jobs import JobRepository
from maas.store.state import ensure_project
from tests.unit.store.test_jobs import new_job

GOODBYE = JobChange(status=JobStatus.QUEUED, is_released=True)


class SlowJobs(JobRepository):
    """The store on a busy disk: each write waits until it may go on."""

    def __init__(self, database, clock):
        super().__init__(database, clock)
        self.begun = threading.Event()
        self.may_go_on = threading.Event()

    def write(self, job_id, attempt, change=None):
        self.begun.set()
        assert self.may_go_on.wait(10)
        return super().write(job_id, attempt, change)


@pytest.fixture
def jobs(tmp_path, clock):
    database = Database(f"sqlite:///{tmp_path / 'maas.db'}")
    database.migrate()
    yield SlowJobs(database, clock)
    database.close()


@pytest.fixture
def desk(jobs, clock, monkeypatch):
    """The desk of a job's first runner, with a quick heart; ``lost`` tells of what it lost."""
    monkeypatch.setattr(desks, "INTERVAL_S", 0.01)
    job = jobs.create(new_job(ensure_project(jobs._database, clock)))
    made = JobDesk(jobs, jobs.take(job.id, seen_attempt=0), on_lost=lambda: None)
    yield made
    jobs.may_go_on.set()
    made.close()


def test_heartbeat_that_waited_for_the_goodbye_is_not_written_after_it(jobs, desk):
    leaving = threading.Thread(target=desk.write, args=(GOODBYE,))
    leaving.start()
    assert jobs.begun.wait(10)
    desk.start()
    # Long enough for a heartbeat to stand behind the goodbye.
    time.sleep(0.1)
    jobs.may_go_on.set()
    leaving.join()
    time.sleep(0.1)
    assert jobs.find(desk.job.id).runner_seen_at is None


def test_what_is_told_goes_out_with_the_next_heartbeat(jobs, desk):
    jobs.may_go_on.set()
    desk.later(Telling("step:1", "Step 1"), progress={"step": 1})
    desk.start()
    deadline = time.monotonic() + 10
    while jobs.find(desk.job.id).progress != {"step": 1}:
        assert time.monotonic() < deadline
        time.sleep(0.01)
