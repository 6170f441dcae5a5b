"""The reconciler: whatever the cluster looks like, a few passes make it match the store."""

import asyncio
from dataclasses import dataclass, field

import pytest

from maas.core.errors import DoesNotFit, EngineUnreachable, SourceUnreachable
from maas.serving.controller import Application, ApplicationState, Reconciler
from maas.store.deployments import DeploymentRepository
from maas.store.records import DeploymentStatus, Replica, ReplicaState
from maas.store.replicas import ReplicaRepository
from maas.store.state import ensure_project


@dataclass(frozen=True)
class FakePlan:
    deployment_id: str
    bounds: tuple[int, int]

    def matches(self, deployment) -> bool:
        return self.bounds == (deployment.min_replicas, deployment.max_replicas)


@dataclass
class FakeCluster:
    """Runs whatever it is told; each application's state can be set."""

    running: dict[str, Application] = field(default_factory=dict)
    applied: list[FakePlan] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)

    async def applications(self):
        return dict(self.running)

    async def apply(self, plan):
        self.applied.append(plan)
        self.running[plan.deployment_id] = Application(ApplicationState.DEPLOYING)

    async def delete(self, deployment_id):
        self.deleted.append(deployment_id)
        self.running.pop(deployment_id)


@dataclass
class FakePlanner:
    refusal: Exception | None = None
    weights_error: Exception | None = None
    external_error: Exception | None = None
    is_slow: bool = False
    fit_checks: list[bool] = field(default_factory=list)

    def plan(self, deployment, *, check_fit):
        self.fit_checks.append(check_fit)
        if self.refusal and check_fit:
            raise self.refusal
        return FakePlan(deployment.id, (deployment.min_replicas, deployment.max_replicas))

    async def prepare(self, plan, report):
        report("downloading: 10% of 98 MiB")
        if self.is_slow:
            await asyncio.sleep(3600)
        if self.weights_error:
            raise self.weights_error

    async def probe(self, deployment):
        if self.external_error:
            raise self.external_error


class World:
    """A store, a fake cluster and a reconciler that can be restarted."""

    def __init__(self, database, clock) -> None:
        self.clock = clock
        self.deployments = DeploymentRepository(database, clock)
        self.replicas = ReplicaRepository(database, clock)
        self.project_id = ensure_project(database, clock)
        self.cluster, self.planner = FakeCluster(), FakePlanner()
        self.restart()

    def restart(self) -> None:
        self.reconciler = Reconciler(
            self.deployments,
            self.replicas,
            cluster=self.cluster,
            planner=self.planner,
            clock=self.clock,
            max_backoff_s=60,
        )

    def deploy(self, engine="vllm", **bounds) -> str:
        made = self.deployments.create(
            project_id=self.project_id, model_id="m", engine=engine, options={}, **bounds
        )
        return made.id

    def ready(self, deployment_id, name="a", state=ReplicaState.READY) -> None:
        self.cluster.running[deployment_id] = Application(ApplicationState.RUNNING)
        self.replicas.publish(
            Replica(
                id=f"{deployment_id}-{name}",
                deployment_id=deployment_id,
                url="http://127.0.0.1:1",
                engine_model="m",
                state=state,
                started_at=self.clock.now(),
                expires_at=self.clock.now() + 5,
            )
        )

    async def step(self, count=1) -> None:
        for _ in range(count):
            await self.reconciler.step()

    def seen(self, deployment_id):
        return self.deployments.get(deployment_id)


@pytest.fixture
def world(database, clock) -> World:
    return World(database, clock)


async def test_new_deployment_is_applied_once_and_runs_when_its_replica_is_ready(world):
    made = world.deploy()
    await world.step(3)
    assert [plan.deployment_id for plan in world.cluster.applied] == [made]
    assert world.seen(made).status is DeploymentStatus.STARTING
    world.ready(made)
    await world.step()
    assert world.seen(made).status is DeploymentStatus.RUNNING


async def test_restarted_controller_applies_again_without_judging_the_fit_of_what_runs(world):
    made = world.deploy()
    await world.step()
    world.ready(made)
    world.planner.refusal = DoesNotFit("its own memory counts against it now")
    world.restart()
    await world.step()
    assert len(world.cluster.applied) == 2  # the cluster ignores a plan that runs already
    assert world.seen(made).status is not DeploymentStatus.REFUSED


async def test_changed_bounds_are_applied(world):
    made = world.deploy()
    await world.step()
    world.ready(made)
    world.deployments.scale(made, min_replicas=1, max_replicas=3)
    await world.step()
    assert world.cluster.applied[-1].bounds == (1, 3)


async def test_too_few_ready_replicas_are_degraded_with_the_count(world):
    made = world.deploy(min_replicas=2, max_replicas=2)
    await world.step()
    world.ready(made)
    await world.step()
    assert world.seen(made).status is DeploymentStatus.DEGRADED
    assert "1 of 2" in world.seen(made).reason


async def test_what_does_not_fit_is_refused_and_looked_at_again_later(world):
    made = world.deploy()
    world.planner.refusal = DoesNotFit("needs 30 GiB of 20 GiB")
    await world.step(2)
    assert (world.seen(made).status, world.seen(made).reason) == (
        DeploymentStatus.REFUSED,
        "needs 30 GiB of 20 GiB",
    )
    assert world.cluster.applied == []
    world.planner.refusal = None
    await world.step()
    assert world.cluster.applied == []
    world.clock.advance(31)
    await world.step()
    assert len(world.cluster.applied) == 1


async def test_failed_start_shows_its_reason_and_backs_off_longer_each_time(world):
    made = world.deploy()
    pauses = []
    for _ in range(3):
        await world.step()
        world.cluster.running[made] = Application(ApplicationState.FAILED, "serve's words")
        world.deployments.record_failure(made, "the engine's words")
        await world.step()
        failed = world.seen(made)
        assert (failed.status, failed.reason) == (DeploymentStatus.FAILED, "the engine's words")
        pauses.append(failed.retry_at - world.clock.now())
        num_applied = len(world.cluster.applied)
        await world.step()
        assert len(world.cluster.applied) == num_applied
        world.clock.advance(pauses[-1] + 1)
    assert pauses == [2, 4, 8]


async def test_success_forgives_earlier_failures_only_after_it_has_lasted(world):
    made = world.deploy()
    await world.step()
    world.deployments.record_failure(made, "once")
    for passed_s, num_failures in ((0, 1), (30, 1), (29, 1), (2, 0)):
        world.clock.advance(passed_s)
        world.ready(made)
        await world.step()
        assert world.seen(made).status is DeploymentStatus.RUNNING
        assert world.seen(made).num_failures == num_failures


async def test_engine_that_starts_and_soon_dies_again_and_again_backs_off_longer(world):
    made = world.deploy()
    pauses = []
    for number in range(4):
        await world.step()
        world.ready(made, f"life-{number}")
        await world.step()
        assert world.seen(made).status is DeploymentStatus.RUNNING
        world.clock.advance(5)
        world.deployments.record_failure(made, "the engine's process ended")
        world.cluster.running[made] = Application(ApplicationState.FAILED)
        await world.step()
        pauses.append(world.seen(made).retry_at - world.clock.now())
        world.clock.advance(pauses[-1] + 1)
    assert pauses == [2, 4, 8, 16]


async def test_one_replica_that_keeps_failing_beside_a_sound_one_is_not_forgiven(world):
    made = world.deploy(min_replicas=1, max_replicas=2)
    await world.step()
    world.deployments.record_failure(made, "the second replica's engine ended")
    for _ in range(100):
        world.clock.advance(1)
        world.ready(made, "sound")
        world.ready(made, "failing", ReplicaState.STARTING)
        await world.step()
    assert world.seen(made).num_failures == 1


async def test_weights_being_prepared_show_progress_and_block_nobody(world):
    world.planner.is_slow = True
    slow = world.deploy()
    await world.step()
    await world.step()
    assert "10% of 98 MiB" in world.seen(slow).reason
    world.planner.is_slow = False
    quick = world.deploy()
    await world.step()
    assert [plan.deployment_id for plan in world.cluster.applied] == [quick]
    world.deployments.delete(slow)
    await world.step()
    assert [d.id for d in world.deployments.list()] == [quick]


async def test_weights_that_cannot_be_had_fail_with_the_reason(world):
    made = world.deploy()
    world.planner.weights_error = SourceUnreachable("the hub does not answer")
    await world.step()
    assert world.seen(made).reason == "the hub does not answer"
    assert world.seen(made).retry_at is not None


async def test_deleted_deployment_is_drained_then_forgotten(world):
    made = world.deploy()
    await world.step()
    world.ready(made)
    world.deployments.delete(made)
    await world.step()
    assert world.cluster.deleted == [made]
    await world.step()
    assert world.deployments.list() == ()


async def test_application_nobody_asked_for_is_deleted(world):
    world.cluster.running["dep-stray"] = Application(ApplicationState.RUNNING)
    await world.step()
    assert world.cluster.deleted == ["dep-stray"]


async def test_one_failing_deployment_does_not_keep_the_others_waiting(world):
    broken = world.deploy(engine="external")
    world.planner.external_error = EngineUnreachable("no answer")
    fine = world.deploy()
    await world.step()
    assert world.seen(broken).status is DeploymentStatus.FAILED
    assert [plan.deployment_id for plan in world.cluster.applied] == [fine]


async def test_answer_of_an_external_engine_forgives_its_failures_at_once(world):
    made = world.deploy(engine="external")
    world.planner.external_error = EngineUnreachable("no answer")
    await world.step()
    assert world.seen(made).num_failures == 1
    world.planner.external_error = None
    world.clock.advance(3)
    await world.step()
    seen = world.seen(made)
    assert (seen.status, seen.num_failures, seen.reason) == (DeploymentStatus.RUNNING, 0, None)


async def test_failure_that_a_replica_records_during_a_pass_is_not_overwritten(world):
    made = world.deploy()
    await world.step()
    world.ready(made)
    await world.step()
    world.deployments.record_failure(made, "the first")
    look = world.cluster.applications

    async def fail_meanwhile():
        # Between the controller's reading of the store and its writing.
        world.deployments.record_failure(made, "the second")
        return await look()

    world.cluster.applications = fail_meanwhile
    await world.step()
    assert (world.seen(made).num_failures, world.seen(made).reason) == (2, "the second")
    world.cluster.applications = look
    await world.step()
    assert (world.seen(made).num_failures, world.seen(made).reason) == (2, None)


async def test_reason_recorded_during_the_pass_that_restarts_is_the_one_shown(world):
    made = world.deploy()
    await world.step()

    async def fail_meanwhile():
        world.deployments.record_failure(made, "the engine's words")
        return {made: Application(ApplicationState.FAILED, "serve's words")}

    world.cluster.applications = fail_meanwhile
    await world.step()
    failed = world.seen(made)
    assert (failed.reason, failed.num_failures) == ("the engine's words", 1)
    assert failed.retry_at == world.clock.now() + 2
