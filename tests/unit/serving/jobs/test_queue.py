"""The queue gives each job that should move one runner, and takes strays away."""

import pytest

from maas.core.errors import EngineError
from maas.core.settings import FinetuneSettings
from maas.serving.jobs.queue import JobQueue, RunnerId
from maas.store.job_records import JobChange, JobStatus, JobWish, NewJob, Telling
from maas.store.jobs import JobRepository
from maas.store.pages import Window
from maas.store.state import ensure_project


class FakeRunners:
    def __init__(self):
        self.running: set[RunnerId] = set()
        self.started: list[RunnerId] = []
        self.killed: list[RunnerId] = []
        self.is_broken = False
        self.before_alive = lambda: None

    async def alive(self):
        self.before_alive()
        return frozenset(self.running)

    async def start(self, runner):
        if self.is_broken:
            raise EngineError("no workers")
        self.running.add(runner)
        self.started.append(runner)

    async def kill(self, runner):
        self.running.discard(runner)
        self.killed.append(runner)


class FakePolicy:
    def __init__(self, jobs):
        self.refusal = None
        self.must_make_room = None
        self.ranks: dict[str, int] = {}
        self._jobs = jobs

    def rank(self, job):
        return self.ranks.get(job.id, 0)

    def refuse(self, job, *, num_running):
        return self.refusal or ("its turn comes later" if num_running else None)

    def must_yield(self, running):
        return self.must_make_room

    def give_up(self, job, ending):
        self._jobs.write(job.id, job.attempt, ending)


@pytest.fixture
def jobs(database, clock):
    return JobRepository(database, clock)


@pytest.fixture
def project_id(database, clock):
    return ensure_project(database, clock)


@pytest.fixture
def runners():
    return FakeRunners()


@pytest.fixture
def policy(jobs):
    return FakePolicy(jobs)


@pytest.fixture
def queue(jobs, runners, policy, clock):
    settings = FinetuneSettings(max_failures=3, runner_timeout_s=30)
    return JobQueue(jobs, runners, policy=policy, clock=clock, settings=settings)


@pytest.fixture
def make(jobs, project_id):
    def make(status=JobStatus.VALIDATING_FILES):
        job = jobs.create(
            NewJob(project_id, "key", "req", "m", "m", "file-1", {"type": "supervised"}, "lora", 1)
        )
        if status is JobStatus.QUEUED:
            taken = jobs.take(job.id, seen_attempt=0)
            change = JobChange(status=status, report={}, is_released=True)
            job = jobs.write(job.id, taken.attempt, change)
        return job

    return make


def runner(job, attempt):
    return RunnerId(job.id, attempt)


async def test_new_job_gets_a_runner_and_only_one(queue, make, runners):
    job = make()
    await queue.step()
    await queue.step()
    assert runners.started == [runner(job, 1)]


async def test_one_job_trains_at_a_time_and_the_other_is_told_why(queue, make, runners, jobs):
    first, second = make(JobStatus.QUEUED), make(JobStatus.QUEUED)
    await queue.step()
    await queue.step()
    assert runners.started == [runner(first, 2)]
    told = jobs.events(second.project_id, second.id, Window(limit=100)).items
    assert [event.message for event in told if event.key.startswith("waiting")] == [
        "its turn comes later"
    ]
    jobs.write(first.id, 2, JobChange(status=JobStatus.SUCCEEDED))
    await queue.step()
    assert runners.killed == [runner(first, 2)]
    await queue.step()
    assert runners.started[-1] == runner(second, 2)


async def test_more_important_job_goes_first(queue, make, runners, policy):
    first, second = make(JobStatus.QUEUED), make(JobStatus.QUEUED)
    policy.ranks = {first.id: 2, second.id: 0}
    await queue.step()
    assert runners.started == [runner(second, 2)]


async def test_runner_that_died_is_replaced_after_a_pause(queue, make, runners, clock, jobs):
    job = make()
    await queue.step()
    runners.running.clear()
    await queue.step()
    assert runners.started == [runner(job, 1)]
    clock.advance(5)
    await queue.step()
    assert runners.started[-1] == runner(job, 2)
    told = [event.key for event in jobs.events(job.project_id, job.id, Window(limit=100)).items]
    assert "ended:1" in told


async def test_runners_that_die_again_and_again_end_the_job_once(queue, make, runners, clock, jobs):
    job = make()
    for _ in range(40):
        await queue.step()
        runners.running.clear()
        clock.advance(100)
    ended = jobs.get(job.project_id, job.id)
    assert ended.status is JobStatus.FAILED
    assert len(runners.started) == 3
    keys = [event.key for event in jobs.events(job.project_id, job.id, Window(limit=100)).items]
    assert keys.count("terminal") == 1


@pytest.mark.parametrize("num_failures", [0, 2])
async def test_runner_that_leaves_while_the_queue_looks_did_not_fail(
    queue, make, runners, clock, jobs, num_failures
):
    job = make()
    for _ in range(num_failures):
        await queue.step()
        runners.running.clear()
        await queue.step()
        clock.advance(100)
    await queue.step()
    attempt = jobs.get(job.project_id, job.id).attempt

    def leave():
        jobs.write(job.id, attempt, JobChange(status=JobStatus.QUEUED, is_released=True))
        runners.running.clear()
        runners.before_alive = lambda: None

    runners.before_alive = leave
    await queue.step()
    after = jobs.get(job.project_id, job.id)
    assert (after.status, after.num_failures) == (JobStatus.QUEUED, num_failures)


async def test_progress_forgives_failures(queue, make, runners, clock, jobs):
    job = make()
    for _ in range(6):
        await queue.step()
        newest = jobs.get(job.project_id, job.id)
        assert newest.status is JobStatus.VALIDATING_FILES
        jobs.write(job.id, newest.attempt, JobChange(progress={"step": 1}))
        runners.running.clear()
        await queue.step()
        clock.advance(100)
    assert jobs.get(job.project_id, job.id).num_failures == 1


async def test_silent_runner_is_killed(queue, make, runners, clock):
    job = make()
    await queue.step()
    clock.advance(31)
    await queue.step()
    assert runners.killed == [runner(job, 1)]


async def test_cancelled_job_loses_its_runner_in_the_next_pass(queue, make, runners, jobs):
    job = make()
    await queue.step()
    jobs.cancel(job.project_id, job.id)
    await queue.step()
    assert runners.killed == [runner(job, 1)]
    assert runners.running == set()


async def test_training_is_asked_to_make_room_for_serving(queue, make, policy, jobs):
    job = make(JobStatus.QUEUED)
    await queue.step()
    jobs.write(job.id, 2, JobChange(status=JobStatus.RUNNING))
    policy.must_make_room = "a deployment needs the memory"
    await queue.step()
    assert jobs.get(job.project_id, job.id).wish is JobWish.YIELD


async def test_runner_that_cannot_be_started_is_tried_again_later(queue, make, runners, clock):
    job = make()
    runners.is_broken = True
    await queue.step()
    runners.is_broken = False
    clock.advance(5)
    await queue.step()
    assert runners.started == [runner(job, 2)]


async def test_paused_job_gets_no_runner_until_it_is_resumed(queue, make, runners, jobs):
    job = make(JobStatus.QUEUED)
    jobs.pause(job.project_id, job.id)
    await queue.step()
    assert runners.started == []
    jobs.resume(job.project_id, job.id)
    await queue.step()
    assert len(runners.started) == 1


def test_runner_of_an_older_attempt_writes_nothing(jobs, make):
    job = make()
    jobs.take(job.id, seen_attempt=0)
    jobs.take(job.id, seen_attempt=1)
    with pytest.raises(Exception, match="not the newest"):
        jobs.write(job.id, 1, JobChange(tellings=(Telling("late", "late"),)))
    keys = [event.key for event in jobs.events(job.project_id, job.id, Window(limit=9)).items]
    assert "late" not in keys
