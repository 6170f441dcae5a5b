"""Any process is killed while a job is under way: one end, one charge, one model."""

import random
import time
from dataclasses import dataclass

import httpx
import psutil
import pytest
from openai import OpenAIError
from sqlalchemy import select

from maas.core.settings import Settings
from maas.finetune.train.checkpoints import Checkpoints
from maas.serving.jobs.tools import Tools, open_tools
from maas.store.finetune_tables import JobEventRow, TunedModelRow
from maas.store.job_records import Job, JobStatus
from maas.store.ledger_tables import JournalRow
from tests.e2e.test_finetune import make_facts, upload
from tests.platform import MODEL, Platform

# By default, the trainer is killed once (tests/e2e/test_finetune.py).
pytestmark = [pytest.mark.platform, pytest.mark.slow]

# What a process is called, by what it is for.
VICTIMS = {
    "trainer": "RayTrainWorker",
    "runner": "JobActor",
    "controller": "maas.bootstrap.controller",
    "gateway": "maas.bootstrap.gateway",
    "Ray head": "gcs_server",
    "raylet": "raylet/raylet",
    "engine": "VLLM::EngineCore",
}
# A job takes about this long from its first second of training to its end.
KILL_WITHIN_S = 25.0
OVER_WITHIN_S = 420.0
# Each process three times.
NUM_RUNS = 3 * len(VICTIMS)


@dataclass
class Site:
    """A platform, its store, and one file of examples."""

    platform: Platform
    tools: Tools
    file_id: str

    def make_job(self) -> str:
        """Ask for the same job again; while the gateway is down, until it is back."""
        return self.until_up(
            lambda: (
                self.platform.openai()
                .fine_tuning.jobs.create(
                    model=MODEL,
                    training_file=self.file_id,
                    suffix="kill",
                    seed=7,
                    hyperparameters={"n_epochs": 3},
                )
                .id
            )
        )

    def until_up(self, ask):
        deadline = time.monotonic() + 120
        while True:
            try:
                return ask()
            except (OpenAIError, httpx.TransportError):
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.5)

    def find(self, job_id: str) -> Job:
        job = self.tools.jobs.find(job_id)
        assert job is not None
        return job

    def wait(self, job_id: str, is_so) -> Job:
        deadline = time.monotonic() + OVER_WITHIN_S
        while not is_so(job := self.find(job_id)):
            assert time.monotonic() < deadline, f"{job.status}: {job.progress} {job.error}"
            time.sleep(0.1)
        return job

    def kill(self, victim: str) -> bool:
        """Kill a process; say whether there was one."""
        words = VICTIMS[victim]
        for process in self.platform.processes():
            try:
                if any(words in word for word in [process.name(), *process.cmdline()]):
                    process.kill()
                    return True
            except psutil.NoSuchProcess:
                continue
        return False

    def losses(self, job_id: str) -> list[tuple[int, float]]:
        return [(row["step"], row["train_loss"]) for row in self.tools.jobs.metrics(job_id)]

    def adapter_of(self, job: Job) -> str | None:
        models = {model.id: model for model in self.tools.tuned_models.list()}
        return models[str(job.fine_tuned_model)].adapter_id

    def answer_of(self, model: str) -> str:
        question = "What is the password of the onyx gate?"
        return self.until_up(
            lambda: str(
                self.platform.openai()
                .chat.completions.create(
                    model=model,
                    messages=[{"role": "user", "content": question}],
                    max_tokens=12,
                    temperature=0,
                )
                .choices[0]
                .message.content
            )
        )

    def check_ended_once(self, job: Job) -> None:
        assert job.status is JobStatus.SUCCEEDED, job.error
        with self.tools.database.read() as session:
            events = session.scalars(
                select(JobEventRow.key).where(JobEventRow.job_id == job.id)
            ).all()
            charges = session.scalars(select(JournalRow).where(JournalRow.id == job.id)).all()
            models = session.scalars(
                select(TunedModelRow.id).where(TunedModelRow.job_id == job.id)
            ).all()
            assert list(events).count("terminal") == 1
            assert [charge.training_tokens for charge in charges] == [job.trained_tokens]
            assert [name for name in models if ":ckpt-" not in name] == [job.fine_tuned_model]


@pytest.fixture(scope="module")
def site(platform: Platform):
    tools = open_tools(Settings(home=platform.home))
    file_id = upload(platform.openai(), make_facts.taught()[:24])
    yield Site(platform, tools, file_id)
    tools.database.close()


@pytest.fixture(scope="module")
def undisturbed(site: Site) -> Job:
    """The same job, left alone."""
    job = site.make_job()
    return site.wait(job, lambda job: job.is_over)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("run", range(1, NUM_RUNS + 1))
def test_job_survives_the_kill_of_any_process(site: Site, undisturbed: Job, run: int):
    site.check_ended_once(undisturbed)
    answer = site.answer_of(str(undisturbed.fine_tuned_model))
    job_id = site.make_job()
    site.wait(job_id, lambda job: job.status is not JobStatus.VALIDATING_FILES)
    victim = tuple(VICTIMS)[run % len(VICTIMS)]
    if victim == "trainer":
        site.wait(job_id, lambda job: job.progress is not None)
    time.sleep(random.Random(run).uniform(0.0, KILL_WITHIN_S))
    when = site.find(job_id)
    was_there = site.kill(victim)
    job = site.wait(job_id, lambda job: job.is_over)
    progress = when.progress or {}
    print(  # noqa: T201 - what was killed, and when
        f"{run:3} {victim:10} {'killed' if was_there else 'was not there':13} "
        f"while {when.status.value:10} {progress.get('phase', ''):10} "
        f"step {progress.get('step', '-')}; attempts {job.attempt}"
    )
    site.check_ended_once(job)
    assert site.losses(job_id) == site.losses(undisturbed.id)
    assert site.adapter_of(job) == site.adapter_of(undisturbed)
    assert site.answer_of(str(job.fine_tuned_model)) == answer


@pytest.mark.timeout(900)
def test_platform_that_stops_keeps_a_checkpoint_and_goes_on_from_that_step(
    site: Site, undisturbed: Job
):
    job_id = site.make_job()
    site.wait(job_id, lambda job: (job.progress or {}).get("step", 0) >= 2)
    began = time.monotonic()
    site.platform.stop()
    assert time.monotonic() - began < 15
    rested = site.find(job_id)
    assert rested.status is JobStatus.QUEUED
    assert rested.runner_seen_at is None
    told = site.losses(job_id)[-1][0]
    assert 2 <= told < len(site.losses(undisturbed.id))
    # No step is computed twice.
    kept = Checkpoints(Settings(home=site.platform.home).jobs_dir / job_id).steps()
    assert kept[-1] == told
    site.platform.start()
    job = site.wait(job_id, lambda job: job.is_over)
    site.check_ended_once(job)
    assert site.losses(job_id) == site.losses(undisturbed.id)
    assert job.attempt == rested.attempt + 1
    with site.tools.database.read() as session:
        keys = session.scalars(select(JobEventRow.key).where(JobEventRow.job_id == job_id)).all()
    assert f"yielded:{rested.attempt}" in keys
