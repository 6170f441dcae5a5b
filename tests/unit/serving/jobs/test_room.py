"""Training takes what serving leaves, and gives it back."""

from dataclasses import replace

import pytest

from maas.serving.jobs.room import Room, training_bytes
from maas.store.job_records import JobChange, JobStatus
from maas.store.jobs import JobRepository
from maas.store.records import Deployment, DeploymentStatus
from maas.store.state import ensure_project
from tests.unit.catalog.fixtures import make_card, make_machine
from tests.unit.store.test_jobs import new_job

GIB = 2**30
# A card of 7 billion weights in two bytes: its training takes about 29 GiB.
CARD = make_card(id="m")


def deployment(status: DeploymentStatus) -> Deployment:
    return Deployment(
        id="dep-1",
        project_id="p",
        model_id="m",
        engine="vllm",
        options={"max_model_len": 1024},
        min_replicas=1,
        max_replicas=1,
        created_at=0.0,
        status=status,
    )


def room(memory_gib: float, *served: Deployment, **fields) -> Room:
    known = {"num_workers": 1, "max_running": 1, "free_gpus": lambda: 0} | fields
    return Room(
        cards={"m": CARD},
        probe=lambda: make_machine(memory_gib=memory_gib),
        deployments=lambda: served,
        **known,
    )


@pytest.fixture
def job(database, clock):
    jobs = JobRepository(database, clock)
    made = jobs.create(new_job(ensure_project(database, clock)))
    taken = jobs.take(made.id, seen_attempt=0)
    return jobs.write(made.id, taken.attempt, JobChange(status=JobStatus.RUNNING))


NEEDED_GIB = training_bytes(CARD, is_full=False) / GIB


def test_job_starts_where_its_memory_is_free_and_waits_where_it_is_not(job):
    assert room(NEEDED_GIB + 1).refuse(job, num_running=0) is None
    said = room(NEEDED_GIB - 1).refuse(job, num_running=0)
    assert said == f"Waiting for memory: it needs {NEEDED_GIB:.1f} GiB"
    assert "its turn" in str(room(NEEDED_GIB + 1).refuse(job, num_running=1))


def test_every_worker_takes_memory_and_split_weights_are_there_once(job):
    full = replace(job, recipe="full")
    assert room(NEEDED_GIB + 1).refuse(full, num_running=0)
    two = {"num_workers": 2}
    assert room(2 * NEEDED_GIB + 1, **two).refuse(job, num_running=0) is None
    assert room(2 * NEEDED_GIB - 1, **two).refuse(job, num_running=0)
    assert room(NEEDED_GIB + 4, **two, is_split=True).refuse(job, num_running=0) is None


@pytest.mark.parametrize("status", [DeploymentStatus.PENDING, DeploymentStatus.STARTING])
def test_deployment_that_comes_up_goes_first(job, status):
    served = deployment(status)
    assert "deployment that starts" in str(room(500, served).refuse(job, num_running=0))
    running = deployment(DeploymentStatus.RUNNING)
    assert room(500, running).refuse(job, num_running=0) is None


def test_training_makes_room_where_that_lets_a_refused_deployment_fit(job):
    refused = deployment(DeploymentStatus.REFUSED)
    assert "dep-1 needs the memory" in str(room(2, refused).must_yield((job,)))
    # It has room already, or is not refused: nobody gains by a job that stops.
    assert room(500, refused).must_yield((job,)) is None
    assert room(2, deployment(DeploymentStatus.RUNNING)).must_yield((job,)) is None


def test_training_goes_on_where_stopping_would_not_be_enough(job):
    huge = replace(deployment(DeploymentStatus.REFUSED), min_replicas=9, max_replicas=9)
    assert room(2, huge).must_yield((job,)) is None


def test_jobs_wait_for_gpus_where_there_are_some(job):
    with_gpus = replace(room(500), probe=lambda: make_machine(80, 80), num_workers=2)
    assert "1 of 2 are free" in str(
        replace(with_gpus, free_gpus=lambda: 1).refuse(job, num_running=0)
    )
    assert replace(with_gpus, free_gpus=lambda: 2).refuse(job, num_running=0) is None


def test_job_that_has_trained_holds_nothing_and_needs_nothing(job):
    done = replace(job, progress={"phase": "publishing"})
    assert room(0.1).refuse(done, num_running=0) is None
    assert room(2, deployment(DeploymentStatus.REFUSED)).must_yield((done,)) is None


def test_training_makes_room_for_a_model_that_was_tuned_whole(job):
    options = {"max_model_len": 1024, "base_model": "m", "weights": "0" * 64}
    refused = replace(deployment(DeploymentStatus.REFUSED), model_id="ft:m:org::1", options=options)
    assert "dep-1 needs the memory" in str(room(2, refused).must_yield((job,)))
