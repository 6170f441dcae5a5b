"""``maas status``: what counts as ready, which gateway is asked, what is shown of a refusal."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from typer.testing import CliRunner

from maas.bootstrap.store import open_store
from maas.cli.main import app
from maas.core.settings import Settings
from maas.store.records import DeploymentStatus, Replica, ReplicaState
from maas.store.state import ensure_project


class Healthy(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/healthz" else 404)
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def gateway(monkeypatch, tmp_path):
    """A gateway that answers on an address which is not 127.0.0.1."""
    server = HTTPServer(("127.0.0.2", 0), Healthy)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    for name, value in {"HOME": tmp_path, "HOST": "127.0.0.2", "PORT": server.server_port}.items():
        monkeypatch.setenv(f"MAAS_{name}", str(value))
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def store(gateway, tmp_path):
    store = open_store(Settings(home=tmp_path))
    yield store
    store.database.close()


def _deploy(store, model_id: str, *, is_ready: bool):
    made = store.deployments.create(
        project_id=ensure_project(store.database, store.clock),
        model_id=model_id,
        engine="vllm",
        options={},
    )
    if is_ready:
        store.replicas.publish(
            Replica(
                id=f"{made.id}-a",
                deployment_id=made.id,
                url="http://127.0.0.1:1",
                engine_model=model_id,
                state=ReplicaState.READY,
                started_at=0.0,
                expires_at=store.clock.now() + 60,
            )
        )
    return made


def _refuse(store, made, reason: str) -> None:
    store.deployments.postpone(
        made.id, status=DeploymentStatus.REFUSED, reason=reason, retry_at=9e9
    )


def _status() -> dict:
    done = CliRunner().invoke(app, ["status", "--json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_gateway_is_asked_where_it_was_set_to_listen(gateway, store):
    _deploy(store, "fine", is_ready=True)
    status = _status()
    assert status["gateway"] == {"url": f"http://127.0.0.2:{gateway.server_port}", "answers": True}
    assert status["ready"] is True
    assert status["deployments"][0]["replicas"][0]["url"] == "http://127.0.0.1:1"


def test_gateway_elsewhere_is_not_taken_for_this_one(store, monkeypatch):
    monkeypatch.setenv("MAAS_HOST", "127.0.0.3")
    _deploy(store, "fine", is_ready=True)
    assert (_status()["gateway"]["answers"], _status()["ready"]) == (False, False)


def test_refused_deployment_is_not_ready_and_its_whole_reason_is_shown(store):
    _deploy(store, "fine", is_ready=True)
    reason = "needs 30.00 GiB of 20.00 GiB; " + "set max_model_len to 1024; " * 8 + "the end"
    refused = _deploy(store, "large", is_ready=False)
    _refuse(store, refused, reason)
    assert _status()["ready"] is False
    shown = CliRunner().invoke(app, ["status"]).output
    assert f"refused  large: {reason}" in shown
    assert "not ready yet" in shown
    store.deployments.delete(refused.id)
    assert _status()["ready"] is True


def test_deployment_without_its_replicas_is_not_ready(store):
    _deploy(store, "starting", is_ready=False)
    assert _status()["ready"] is False


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8080"),
        ("0.0.0.0", "http://127.0.0.1:8080"),
        ("::", "http://[::1]:8080"),
        ("10.1.2.3", "http://10.1.2.3:8080"),
        ("gateway.example", "http://gateway.example:8080"),
    ],
)
def test_gateway_is_reached_at_an_address_that_can_be_asked(host, url):
    assert Settings(host=host).gateway_url == url
