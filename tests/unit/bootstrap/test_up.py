"""What ``maas up`` waits for before it says that it is ready."""

import pytest

from maas.bootstrap.up import _unready
from maas.store.records import Deployment, DeploymentStatus, Replica, ReplicaState


def deployment(status: str = "running", **fields) -> Deployment:
    values = {"min_replicas": 1, "max_replicas": 2, "reason": None, **fields}
    return Deployment(
        id="dep-1",
        project_id="proj-1",
        model_id="tiny",
        engine="vllm",
        options={},
        created_at=0.0,
        status=DeploymentStatus(status),
        **values,
    )


def replica(name: str, state: str = "ready") -> Replica:
    return Replica(
        id=f"dep-1-{name}",
        deployment_id="dep-1",
        url="http://127.0.0.1:1",
        engine_model="tiny",
        state=ReplicaState(state),
        started_at=0.0,
        expires_at=1.0,
    )


def test_status_of_the_last_run_is_not_taken_for_readiness():
    assert _unready((deployment("running"),), ()) == "tiny: starting"


def test_replica_that_answers_is():
    assert _unready((deployment("starting"),), (replica("a"),)) == ""


@pytest.mark.parametrize("state", ["starting", "draining"])
def test_replica_that_does_not_answer_yet_is_waited_for(state):
    assert _unready((deployment(),), (replica("a", state),)) == "tiny: starting"


def test_every_wanted_replica_is_waited_for():
    wanted = (deployment(min_replicas=2),)
    assert _unready(wanted, (replica("a"),)) == "tiny: starting"
    assert _unready(wanted, (replica("a"), replica("b"))) == ""


def test_reason_of_a_failure_is_shown():
    assert _unready((deployment("failed", reason="no room"),), ()) == "tiny: no room"


def test_refused_and_deleted_deployments_are_not_waited_for():
    assert _unready((deployment("refused"), deployment("running", deleted_at=1.0)), ()) == ""
