"""A job has one runner, hears the newest wish and ends once, whoever writes when."""

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from sqlalchemy import select

from maas.core.errors import Conflict, NotFound, Superseded
from maas.store.database import Database
from maas.store.finetune_tables import JobEventRow
from maas.store.job_records import ACTIVE, JobChange, JobStatus, JobWish, NewJob, Telling
from maas.store.jobs import JobRepository
from maas.store.pages import Window
from maas.store.state import ensure_project
from tests.conftest import MovableClock

RUNNING = JobChange(status=JobStatus.RUNNING, report={"num_examples": 1})


def new_job(project_id: str) -> NewJob:
    return NewJob(
        project_id=project_id,
        key_id="key",
        request_id="req",
        model_id="m",
        base_model_id="m",
        training_file="file-1",
        method={"type": "supervised"},
        recipe="lora",
        seed=1,
    )


@pytest.fixture
def jobs(database, clock):
    return JobRepository(database, clock)


@pytest.fixture
def project_id(database, clock):
    return ensure_project(database, clock)


@pytest.fixture
def running(jobs, project_id):
    """A job that a runner trains."""
    job = jobs.create(new_job(project_id))
    taken = jobs.take(job.id, seen_attempt=0)
    return jobs.write(job.id, taken.attempt, RUNNING)


def told(jobs, job) -> list[str]:
    page = jobs.events(job.project_id, job.id, Window(limit=100))
    return [event.key for event in page.items]


def test_older_runner_writes_nothing_more(jobs, running):
    jobs.failed_once(running.id, running.attempt, retry_at=0.0, reason="gone")
    newer = jobs.take(running.id, seen_attempt=running.attempt)
    with pytest.raises(Superseded):
        jobs.write(running.id, running.attempt, JobChange(trained_tokens=5))
    with pytest.raises(Superseded):
        jobs.add_checkpoint(running.id, running.attempt, step=1, metrics={}, model_id="m:1", keep=3)
    assert jobs.write(running.id, newer.attempt).trained_tokens is None


def test_runner_that_said_goodbye_did_not_fail(jobs, running):
    jobs.write(running.id, running.attempt, JobChange(status=JobStatus.QUEUED, is_released=True))
    with pytest.raises(Superseded):
        jobs.failed_once(running.id, running.attempt, retry_at=9.0, reason="gone")
    after = jobs.find(running.id)
    assert (after.num_failures, after.num_restarts, after.retry_at) == (0, 0, None)


def test_restarts_are_counted_after_the_job_has_moved_too(jobs, running):
    for attempt in (running.attempt, running.attempt + 1):
        jobs.failed_once(running.id, attempt, retry_at=0.0, reason="gone")
        taken = jobs.take(running.id, seen_attempt=attempt)
        jobs.write(running.id, taken.attempt, JobChange(progress={"step": attempt}))
    after = jobs.find(running.id)
    assert (after.num_failures, after.num_restarts) == (0, 2)


def test_two_that_take_a_job_at_once_are_one_runner(jobs, running):
    jobs.take(running.id, seen_attempt=running.attempt)
    with pytest.raises(Superseded):
        jobs.take(running.id, seen_attempt=running.attempt)


def test_event_of_one_key_is_told_once(jobs, running):
    again = JobChange(tellings=(Telling("step:1", "a"), Telling("step:1", "b")))
    for _ in range(2):
        jobs.write(running.id, running.attempt, again)
    assert told(jobs, running).count("step:1") == 1


def test_pause_of_a_runner_that_died_is_kept(jobs, running):
    jobs.pause(running.project_id, running.id)
    ended = jobs.failed_once(running.id, running.attempt, retry_at=9.0, reason="gone")
    assert (ended.status, ended.retry_at, ended.runner_seen_at) == (JobStatus.PAUSED, None, None)
    with pytest.raises(Superseded):
        jobs.take(running.id, seen_attempt=ended.attempt)


def test_pause_between_two_runners_is_at_once(jobs, running):
    jobs.failed_once(running.id, running.attempt, retry_at=9.0, reason="gone")
    assert jobs.pause(running.project_id, running.id).status is JobStatus.PAUSED


def test_pause_before_training_lets_no_runner_look_dead(jobs, project_id):
    job = jobs.create(new_job(project_id))
    taken = jobs.take(job.id, seen_attempt=0)
    assert jobs.pause(project_id, job.id).runner_seen_at is None
    with pytest.raises(Superseded):
        jobs.write(job.id, taken.attempt)
    assert jobs.resume(project_id, job.id).runner_seen_at is None


def test_runner_that_stops_for_a_pause_taken_back_goes_on_later(jobs, running):
    jobs.pause(running.project_id, running.id)
    jobs.resume(running.project_id, running.id)
    stopped = JobChange(status=JobStatus.PAUSED, is_released=True)
    ended = jobs.write(running.id, running.attempt, stopped)
    assert ended.status is JobStatus.QUEUED
    assert jobs.take(running.id, seen_attempt=ended.attempt).wish is None


def test_runner_that_makes_room_while_a_pause_is_wished_rests(jobs, running):
    jobs.ask(running.id, running.attempt, JobWish.YIELD)
    jobs.pause(running.project_id, running.id)
    stopped = JobChange(status=JobStatus.QUEUED, retry_at=5.0, is_released=True)
    ended = jobs.write(running.id, running.attempt, stopped)
    assert (ended.status, ended.wish, ended.retry_at) == (JobStatus.PAUSED, None, None)


def test_cancelled_job_has_the_tokens_that_were_trained(jobs, running):
    jobs.write(running.id, running.attempt, JobChange(progress={"trained_tokens": 12}))
    ended = jobs.cancel(running.project_id, running.id)
    assert (ended.trained_tokens, ended.is_over) == (12, True)
    assert jobs.cancel(running.project_id, running.id) == ended
    with pytest.raises(Superseded):
        jobs.write(running.id, running.attempt, JobChange(status=JobStatus.SUCCEEDED))
    assert told(jobs, running).count("terminal") == 1


def test_what_is_over_stays_so(jobs, running):
    jobs.write(running.id, running.attempt, JobChange(status=JobStatus.SUCCEEDED))
    for act in (jobs.cancel, jobs.pause, jobs.resume):
        with pytest.raises(Conflict):
            act(running.project_id, running.id)
    with pytest.raises(NotFound):
        jobs.cancel("another", running.id)


def test_only_the_newest_checkpoints_are_kept(jobs, running):
    for step in (1, 2, 3, 3):
        jobs.add_checkpoint(
            running.id, running.attempt, step=step, metrics={}, model_id=f"m:{step}", keep=2
        )
    assert [item.step for item in jobs.kept_checkpoints(running.id)] == [2, 3]


class JobMachine(RuleBasedStateMachine):
    """People wish, runners write, some of them long dead, in any order."""

    database: Database
    project_id: str

    def __init__(self) -> None:
        super().__init__()
        self.clock = MovableClock()
        self.jobs = JobRepository(self.database, self.clock)
        self.attempts: list[int] = []
        self.ending: JobStatus | None = None

    @initialize()
    def create(self) -> None:
        self.job = self.jobs.create(new_job(self.project_id))

    @property
    def now(self):
        found = self.jobs.find(self.job.id)
        assert found is not None
        return found

    @rule()
    def take(self) -> None:
        before = self.now
        try:
            taken = self.jobs.take(self.job.id, seen_attempt=before.attempt)
        except Superseded:
            assert before.status not in ACTIVE
            return
        assert taken.attempt == before.attempt + 1
        self.attempts.append(taken.attempt)

    @precondition(lambda self: self.attempts)
    @rule(
        data=st.data(),
        status=st.sampled_from(
            [None, "queued", "running", "paused", "succeeded", "failed"],
        ),
    )
    def write(self, data, status) -> None:
        attempt = data.draw(st.sampled_from(self.attempts))
        before = self.now
        wanted = status and JobStatus(status)
        change = JobChange(status=wanted, is_released=status in {"queued", "paused"})
        is_allowed = attempt == before.attempt and not before.is_over
        try:
            after = self.jobs.write(self.job.id, attempt, change)
        except Superseded:
            assert not is_allowed
            assert self.now == before
            return
        assert is_allowed
        if after.is_over:
            assert self.ending is None
            self.ending = after.status
        if status in {"queued", "paused"}:
            is_wished = before.wish is JobWish.PAUSE
            assert after.status is (JobStatus.PAUSED if is_wished else JobStatus.QUEUED)

    @precondition(lambda self: self.attempts)
    @rule(data=st.data())
    def die(self, data) -> None:
        attempt = data.draw(st.sampled_from(self.attempts))
        before = self.now
        try:
            after = self.jobs.failed_once(self.job.id, attempt, retry_at=1.0, reason="x")
        except Superseded:
            is_newest = attempt == before.attempt and not before.is_over
            assert not is_newest or before.runner_seen_at is None
            return
        assert after.num_restarts == before.num_restarts + 1
        assert after.runner_seen_at is None
        assert (after.status is JobStatus.PAUSED) == (
            before.wish is JobWish.PAUSE or before.status is JobStatus.PAUSED
        )

    @rule(name=st.sampled_from(["pause", "resume", "cancel"]))
    def wish(self, name) -> None:
        before = self.now
        try:
            after = getattr(self.jobs, name)(self.project_id, self.job.id)
        except Conflict:
            is_active = before.status in ACTIVE and before.wish is not JobWish.PAUSE
            assert before.is_over or (name == "resume" and is_active)
            return
        if name == "cancel":
            assert after.status is JobStatus.CANCELLED
            self.ending = self.ending or after.status
        elif name == "pause":
            assert after.status is JobStatus.PAUSED or after.wish is JobWish.PAUSE
        else:
            assert after.status in ACTIVE
            assert after.wish is not JobWish.PAUSE

    @invariant()
    def ends_once(self) -> None:
        if not hasattr(self, "job"):
            return
        with self.database.read() as session:
            keys = select(JobEventRow.key).where(JobEventRow.job_id == self.job.id)
            told = list(session.scalars(keys))
        assert told.count("terminal") == (self.ending is not None)
        assert len(told) == len(set(told))
        if self.ending is not None:
            assert self.now.status is self.ending
            assert self.now.wish is None


def test_job_ends_once_and_obeys_in_any_order(database, clock):
    project_id = ensure_project(database, clock)
    machine = type("Machine", (JobMachine,), {"database": database, "project_id": project_id})
    machine.TestCase.settings = settings(
        max_examples=40,
        stateful_step_count=15,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    machine.TestCase("runTest").runTest()
