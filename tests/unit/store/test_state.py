"""Desired state: what gateways read, and when they have to read it anew."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from maas.core.errors import ConfigError, NotFound
from maas.store.aliases import AliasRepository
from maas.store.database import Database
from maas.store.deployments import DeploymentRepository
from maas.store.keys import KeyRepository
from maas.store.leases import LeaseRepository
from maas.store.records import DeploymentStatus, Replica, ReplicaState
from maas.store.replicas import ReplicaRepository
from maas.store.state import StateReader, ensure_project


@pytest.fixture
def deployments(database, clock):
    return DeploymentRepository(database, clock)


@pytest.fixture
def replicas(database, clock):
    return ReplicaRepository(database, clock)


@pytest.fixture
def state(database, clock):
    return StateReader(database, clock)


@pytest.fixture
def deployment(database, clock, deployments):
    project_id = ensure_project(database, clock)
    return deployments.create(project_id=project_id, model_id="m", engine="vllm", options={})


def _replica(deployment, clock, **changes):
    fields = {
        "id": "rep-1",
        "deployment_id": deployment.id,
        "url": "http://127.0.0.1:1",
        "engine_model": "m",
        "state": ReplicaState.READY,
        "started_at": clock.now(),
        "expires_at": clock.now() + 5,
    }
    return Replica(**{**fields, **changes})


def test_migrating_twice_changes_nothing(database: Database):
    database.migrate()
    with database.read() as session:
        assert session.connection().exec_driver_sql("SELECT count(*) FROM revision").scalar() == 1


def test_project_of_a_name_is_made_once(database, clock):
    assert ensure_project(database, clock) == ensure_project(database, clock)


def test_every_change_of_desired_state_moves_the_revision(database, clock, state, deployment):
    keys, aliases = KeyRepository(database, clock), AliasRepository(database, clock)
    deployments = DeploymentRepository(database, clock)
    record, _ = keys.create(project_id=deployment.project_id, name="k")
    for change in (
        lambda: keys.revoke(record.id),
        lambda: aliases.point("fast", "m"),
        lambda: aliases.remove("fast"),
        lambda: deployments.scale(deployment.id, min_replicas=2, max_replicas=3),
        lambda: deployments.delete(deployment.id),
        lambda: deployments.forget(deployment.id),
    ):
        before = state.read().revision
        change()
        assert state.read().revision == before + 1


def test_heartbeats_and_observations_leave_the_revision_alone(
    state, deployments, replicas, deployment, clock
):
    before = state.read().revision
    replicas.publish(_replica(deployment, clock))
    deployments.observe(
        deployment.id, status=DeploymentStatus.RUNNING, reason=None, seen_failures=0
    )
    assert state.read().revision == before


def test_unchanged_revision_reuses_what_is_known_but_reads_leases(
    state, replicas, deployment, clock
):
    known = state.read()
    replicas.publish(_replica(deployment, clock))
    fresh = state.read(known)
    assert fresh.deployments is known.deployments
    assert [replica.id for replica in fresh.replicas] == ["rep-1"]


def test_lease_that_ran_out_is_not_live_and_is_swept(replicas, deployment, clock):
    replicas.publish(_replica(deployment, clock))
    clock.advance(5.1)
    assert replicas.live() == ()
    assert replicas.sweep() == 1
    assert replicas.sweep() == 0


def test_clearing_takes_the_leases_of_this_machine_back_and_no_others(replicas, deployment, clock):
    replicas.publish(_replica(deployment, clock))
    replicas.publish(_replica(deployment, clock, id="rep-2", url="http://10.0.0.7:8000"))
    replicas.clear_local()
    assert [replica.id for replica in replicas.live()] == ["rep-2"]


def test_lease_is_not_published_for_a_forgotten_deployment(
    replicas, deployments, deployment, clock
):
    deployments.forget(deployment.id)
    assert replicas.publish(_replica(deployment, clock)) is False
    assert replicas.live() == ()


def test_forgetting_a_deployment_takes_its_leases_along(replicas, deployments, deployment, clock):
    replicas.publish(_replica(deployment, clock))
    deployments.forget(deployment.id)
    assert replicas.live() == ()
    with pytest.raises(NotFound):
        deployments.get(deployment.id)


def test_deleted_deployment_keeps_saying_so(deployments, deployment):
    deployments.delete(deployment.id)
    deployments.observe(
        deployment.id, status=DeploymentStatus.RUNNING, reason=None, seen_failures=0
    )
    assert deployments.get(deployment.id).status is DeploymentStatus.DELETING


def test_observation_older_than_a_failure_changes_nothing(deployments, deployment):
    seen = deployments.get(deployment.id)
    assert deployments.record_failure(deployment.id, "died") == 1
    is_written = deployments.observe(
        deployment.id,
        status=DeploymentStatus.RUNNING,
        reason=None,
        seen_failures=seen.num_failures,
        is_forgiven=True,
    )
    assert not is_written
    found = deployments.get(deployment.id)
    assert (found.num_failures, found.reason) == (1, "died")


def test_observation_keeps_the_count_unless_it_forgives(deployments, deployment):
    deployments.record_failure(deployment.id, "died")
    for is_forgiven, num_failures in ((False, 1), (True, 0)):
        assert deployments.observe(
            deployment.id,
            status=DeploymentStatus.RUNNING,
            reason=None,
            seen_failures=1,
            is_forgiven=is_forgiven,
        )
        assert deployments.get(deployment.id).num_failures == num_failures


def test_failures_recorded_at_once_are_all_counted(deployments, deployment):
    with ThreadPoolExecutor(8) as pool:
        counts = list(pool.map(lambda _: deployments.record_failure(deployment.id, "x"), range(24)))
    assert sorted(counts) == list(range(1, 25))


@pytest.mark.parametrize("bounds", [(0, 0), (0, 1), (2, 1), (-1, 1), (1, 100_000)])
def test_impossible_replica_bounds_are_refused(deployments, deployment, bounds):
    with pytest.raises(ConfigError, match="replicas"):
        deployments.scale(deployment.id, min_replicas=bounds[0], max_replicas=bounds[1])


def test_scaling_gives_a_failed_deployment_another_try(deployments, deployment):
    assert deployments.record_failure(deployment.id, "no") == 1
    deployments.postpone(deployment.id, status=DeploymentStatus.FAILED, reason="no", retry_at=9e9)
    tried = deployments.scale(deployment.id, min_replicas=1, max_replicas=1)
    assert (tried.status, tried.num_failures, tried.retry_at) == ("pending", 0, None)


def test_new_start_tries_what_was_refused_or_failed_again(deployments, deployment):
    deployments.record_failure(deployment.id, "no")
    for status in (DeploymentStatus.REFUSED, DeploymentStatus.FAILED):
        deployments.postpone(deployment.id, status=status, reason="no", retry_at=9e9)
        deployments.try_again()
        tried = deployments.get(deployment.id)
        assert (tried.status, tried.reason, tried.retry_at) == ("pending", None, None)
        assert tried.num_failures == 0


def test_new_start_leaves_what_ran_as_it_is(deployments, deployment):
    deployments.observe(
        deployment.id, status=DeploymentStatus.RUNNING, reason=None, seen_failures=0
    )
    deployments.try_again()
    assert deployments.get(deployment.id).status is DeploymentStatus.RUNNING


def test_lease_of_a_role_is_held_by_one_until_it_runs_out(database, clock):
    leases = LeaseRepository(database, clock)
    assert leases.acquire("controller", "a", ttl_s=5)
    assert not leases.acquire("controller", "b", ttl_s=5)
    clock.advance(5.1)
    assert leases.acquire("controller", "b", ttl_s=5)
    assert not leases.acquire("controller", "a", ttl_s=5)
    leases.release("controller", "a")
    assert not leases.acquire("controller", "a", ttl_s=5)
    leases.release("controller", "b")
    assert leases.acquire("controller", "a", ttl_s=5)


def test_gateways_are_current_only_when_each_live_one_saw_the_newest(database, clock, state):
    leases, keys = LeaseRepository(database, clock), KeyRepository(database, clock)
    assert leases.are_gateways_current()
    leases.acquire("gateway/a", "a", ttl_s=5, revision=state.read().revision)
    assert leases.are_gateways_current()
    keys.create(project_id=ensure_project(database, clock), name="k")
    assert not leases.are_gateways_current()
    clock.advance(6)
    assert leases.are_gateways_current()


def test_writers_queue_instead_of_failing(database, clock):
    keys = KeyRepository(database, clock)
    project_id = ensure_project(database, clock)

    def write() -> None:
        for _ in range(10):
            keys.create(project_id=project_id, name="k")

    writers = [threading.Thread(target=write) for _ in range(8)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert len(keys.list()) == 80


def test_failed_transaction_leaves_nothing(database, clock, state):
    before = state.read()
    aliases = AliasRepository(database, clock)
    with pytest.raises(NotFound):
        aliases.remove("never")
    assert state.read() == before
