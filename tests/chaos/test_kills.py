"""Kill anything with -9: the same deployments come back and nothing is lost."""

import json
import signal
import threading
import time

import httpx
import pytest

from tests.platform import MODEL

pytestmark = [pytest.mark.platform, pytest.mark.timeout(600)]


def _ask(platform, **fields):
    body = {"model": MODEL, "max_tokens": 4, "messages": [{"role": "user", "content": "hi"}]}
    with platform.client() as client:
        return client.post("/v1/chat/completions", json={**body, **fields})


def _answers(platform) -> bool:
    try:
        return _ask(platform).status_code == 200
    except httpx.TransportError:
        return False


def _engine_processes(platform):
    return [p for p in platform.processes() if "MAASPROC" in p.environ()]


def test_engine_killed_mid_stream_is_an_error_event_then_503_then_a_new_replica(platform):
    (old,) = platform.ready_ids()
    body = {
        "model": MODEL,
        "stream": True,
        "max_tokens": 2000,
        "messages": [{"role": "user", "content": "Write a very long story about the sea."}],
    }
    engine = platform.find("VLLM::EngineCore")
    with (
        platform.client() as client,
        client.stream("POST", "/v1/chat/completions", json=body) as answer,
    ):
        parts = answer.iter_text()
        text = next(parts) + next(parts)
        engine.send_signal(signal.SIGKILL)
        text += "".join(parts)
    events = [event.removeprefix("data: ") for event in text.split("\n\n") if event]
    assert "[DONE]" not in events
    assert json.loads(events[-1])["error"]["type"] == "server_error"

    refused = _ask(platform)
    assert refused.status_code == 503
    assert int(refused.headers["retry-after"]) >= 1
    platform.wait(lambda: platform.ready_ids() - {old}, "a new replica")
    platform.wait(lambda: _answers(platform), "an answer")


def test_hung_engine_is_noticed_and_replaced(platform):
    (old,) = platform.ready_ids()
    platform.find("VLLM::EngineCore").suspend()
    asking = threading.Thread(target=lambda: _answers(platform), daemon=True)
    asking.start()
    platform.wait(lambda: platform.ready_ids() - {old}, "a new replica")
    platform.wait(lambda: _answers(platform), "an answer")


def test_gateway_killed_is_back_within_seconds_and_the_engine_never_noticed(platform):
    before = platform.ready_ids()
    platform.find("maas.bootstrap.gateway").kill()
    started = time.monotonic()
    platform.wait(lambda: _answers(platform), "the gateway")
    assert time.monotonic() - started < 15
    assert platform.ready_ids() == before


def test_controller_killed_is_back_and_restarts_no_engine(platform):
    before = platform.ready_ids()
    platform.find("maas.bootstrap.controller").kill()
    made = platform.cli("deploy", "create", "--model", "m", "--url", platform.url)
    platform.cli("deploy", "delete", made["id"])
    # A new controller has acted when the deployment that was made and deleted is gone.
    platform.wait(
        lambda: made["id"] not in [d["id"] for d in platform.status()["deployments"]],
        "the controller",
    )
    assert platform.ready_ids() == before
    assert _answers(platform)


@pytest.mark.parametrize("victim", ["ray::ServeReplica", "ray::ServeController"])
def test_ray_actors_killed_come_back(platform, victim):
    platform.find(victim).kill()
    time.sleep(2)
    platform.wait(lambda: platform.status()["ready"] and _answers(platform), "an answer")
    assert len(platform.ready_ids()) == 1


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["gcs_server", "raylet", "maas.bootstrap.head"])
def test_ray_head_killed_brings_the_same_deployments_back(platform, victim):
    deployments = [d["id"] for d in platform.status()["deployments"]]
    (old,) = platform.ready_ids()
    platform.find(victim).kill()
    platform.wait(lambda: platform.ready_ids() - {old}, "a new replica")
    platform.wait(lambda: _answers(platform), "an answer")
    assert [d["id"] for d in platform.status()["deployments"]] == deployments
    assert len(_engine_processes(platform)) <= 4


def test_deleting_a_deployment_lets_open_answers_finish(platform):
    (deployment,) = {r["deployment_id"] for r in platform.replicas()}
    body = {"model": MODEL, "stream": True, "max_tokens": 80, "prompt": "Once upon a time"}
    with (
        platform.client() as client,
        client.stream("POST", "/v1/completions", json=body) as answer,
    ):
        parts = answer.iter_text()
        text = next(parts)
        platform.cli("deploy", "delete", deployment)
        text += "".join(parts)
    assert text.rstrip().endswith("data: [DONE]")
    platform.wait(lambda: not platform.replicas(), "the replica to go")
    platform.cli("deploy", "create", "--model", MODEL)
    platform.wait(platform.ready_ids, "the new deployment")
    platform.wait(lambda: _answers(platform), "an answer")


def test_supervisor_killed_leaves_no_process_and_make_up_brings_all_back(platform):
    deployments = [d["id"] for d in platform.status()["deployments"]]
    platform.process.kill()
    platform.process.wait()
    assert platform.wait_gone(15) == []
    platform.start()
    assert [d["id"] for d in platform.status()["deployments"]] == deployments
    # The leases of the replicas that died with it may not have run out yet.
    platform.wait(lambda: _answers(platform), "an answer")


def test_ctrl_c_stops_everything_within_15_s_and_leaves_no_process(platform):
    assert platform.stop() < 15
    assert platform.wait_gone(1) == []
    platform.start()
    platform.wait(lambda: _answers(platform), "an answer")
