"""What ``maas up`` makes before it starts, and waits for before it says that it is ready."""

from contextlib import closing
from pathlib import Path

import pytest

from maas.bootstrap.signing import make_signing
from maas.bootstrap.up import _chat_model, _prepare, _refused, _unready
from maas.catalog.catalog import load_catalog
from maas.core.settings import Settings
from maas.store.records import Deployment, DeploymentStatus, Replica, ReplicaState
from tests.conftest import REPOSITORY
from tests.platform import free_port


def deployment(status: str = "running", **fields) -> Deployment:
    values = {"min_replicas": 1, "max_replicas": 2, "reason": None, **fields}
    values = {"id": "dep-1", "model_id": "tiny", **values}
    return Deployment(
        project_id="proj-1",
        engine="vllm",
        options={},
        created_at=0.0,
        status=DeploymentStatus(status),
        **values,
    )


def replica(name: str, state: str = "ready", deployment_id: str = "dep-1") -> Replica:
    return Replica(
        id=f"{deployment_id}-{name}",
        deployment_id=deployment_id,
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


def test_refused_deployments_are_named_with_their_reasons():
    refused = deployment("refused", reason="needs 30 GiB of 20 GiB")
    gone = deployment("refused", reason="old", deleted_at=1.0)
    assert _refused((deployment(), refused, gone)) == ("tiny: needs 30 GiB of 20 GiB",)


def _deployments(*models: str) -> tuple[Deployment, ...]:
    return tuple(deployment(id=f"dep-{i}", model_id=name) for i, name in enumerate(models))


@pytest.mark.parametrize(
    ("ready", "preferred", "found"),
    [
        ((0, 1, 2, 3, 4), "smollm2-135m-instruct", "smollm2-135m-instruct"),
        ((0, 1, 2, 4), "smollm2-135m-instruct", "qwen3-8b"),
        ((0, 1, 4), None, "somebody-elses"),
        ((0, 1), "smollm2-135m-instruct", None),
        ((), "smollm2-135m-instruct", None),
    ],
)
def test_first_request_names_a_chat_model_that_answers(ready, preferred, found):
    deployments = _deployments(
        # An embedding model and one that is not tuned for chat come first.
        *("all-minilm-l6-v2", "gemma-3-270m", "qwen3-8b"),
        *("smollm2-135m-instruct", "somebody-elses"),
    )
    live = tuple(replica("a", deployment_id=f"dep-{i}") for i in ready)
    catalog = load_catalog(REPOSITORY / "models")
    assert {"all-minilm-l6-v2", "gemma-3-270m", "qwen3-8b"} <= set(catalog)
    assert _chat_model(deployments, live, catalog, preferred=preferred) == found


def test_the_key_of_bundles_is_there_before_a_device_can_enrol(tmp_path: Path):
    settings = Settings(home=tmp_path, port=free_port(), metrics_port=free_port(), model=None)
    store = _prepare(settings)
    with closing(store.database):
        assert make_signing(settings, store).keys.find_public() is not None
