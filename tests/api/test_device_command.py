"""``maas device`` against a gateway: what an operator types, from the first code to the end."""

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from typer.testing import CliRunner

from maas.cli import device_codes
from maas.cli.main import app
from maas.core.errors import ConfigError, Conflict, MaasError, NotFound
from maas.core.ids import new_id
from maas.store.roles import ORGANIZATION_SCOPE
from tests.api.conftest import RunningGateway
from tests.fakes.devices import FakeDevice, made_bundle
from tests.fakes.engine import FakeEngine

Run = Callable[..., Any]


@pytest.fixture
def project(gateway: RunningGateway) -> Iterator[tuple[str, str]]:
    """A project of its own and the key of its operator."""
    organization = gateway.store.tenancy.organizations.find("default")
    project = gateway.store.tenancy.projects.create(organization.id, new_id("fleet"))
    _, key = gateway.store.keys.create(
        project_id=project.id, name="k", scopes=(ORGANIZATION_SCOPE,)
    )
    gateway.wait_seen()
    return project.id, key


@pytest.fixture
def maas(gateway: RunningGateway, project, tmp_path, monkeypatch) -> Run:
    """Run ``maas device``; return the object it prints, or its text."""
    monkeypatch.setenv("MAAS_HOME", str(tmp_path / "home"))

    def run(*arguments: str, as_json: bool = True):
        where = ["--url", gateway.url, "--key", project[1]]
        done = CliRunner().invoke(
            app, ["device", *arguments, *where, *(["--json"] if as_json else [])]
        )
        if isinstance(done.exception, MaasError):
            raise done.exception
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout) if as_json else done.stdout

    return run


@pytest.fixture
def device(gateway: RunningGateway, maas: Run) -> FakeDevice:
    code = maas("enrol-code", "--name", "kitchen", "--expires-in", "30m")
    body = {"code": code["code"], "nonce": "n" * 32}
    answer = gateway.client.post("/v1/devices/enrol", json=body).json()
    return FakeDevice(gateway.url, answer["device"]["id"], answer["key"])


def test_device_is_listed_shown_assigned_and_retired(gateway, project, maas, device):
    bundle_id = made_bundle(gateway.store, project[0], gateway.home, "b")
    maas("channel", "set", "stable", "--bundle", bundle_id)
    device.beat()
    device.beat()
    (listed,) = maas("list", "--bundle", bundle_id)["data"]
    assert (listed["id"], listed["name"], listed["is_online"]) == (device.id, "kitchen", True)
    assert maas("list", "--group", "nobody")["data"] == []
    assert "kitchen" in maas("list", as_json=False)
    assert bundle_id in maas("show", device.id, as_json=False)
    assert (
        maas("assign", device.id, "--channel", "beta", "--bundle", bundle_id)["channel"] == "beta"
    )
    assert maas("assign", device.id, "--unpin")["bundle_id"] is None
    with pytest.raises(ConfigError, match="nothing to change"):
        maas("assign", device.id)
    types = [event["type"] for event in maas("events", device.id)["data"]]
    assert types == ["assigned", "assigned", "update_succeeded", "enrolled"]
    assert "update_succeeded" in maas("events", device.id, as_json=False)
    assert maas("summary")["by_bundle"] == {bundle_id: 1}
    assert "40.00 (median of 1)" in maas("summary", as_json=False)
    assert maas("retire", device.id)["deleted"] is True
    assert device.try_beat().status_code == 401
    assert maas("list")["data"] == []
    assert [item["id"] for item in maas("list", "--retired")["data"]] == [device.id]
    with pytest.raises(NotFound):
        maas("show", "device-nobody")


def test_codes_are_listed_and_withdrawn(gateway: RunningGateway, maas: Run, device: FakeDevice):
    code = maas("enrol-code", "--group", "default", "--metadata", "room=hall")
    assert code["metadata"] == {"room": "hall"}
    listed = maas("code", "list")["data"]
    assert listed[0]["id"] == code["id"]
    assert [item["device_id"] for item in listed] == [None, device.id]
    assert {item["code"] for item in listed} == {None}
    shown = maas("code", "list", as_json=False)
    assert "open" in shown
    assert code["code"] not in shown
    assert maas("code", "delete", code["id"])["deleted"] is True
    body = {"code": code["code"], "nonce": "m" * 32}
    assert gateway.client.post("/v1/devices/enrol", json=body).status_code == 401
    with pytest.raises(NotFound):
        maas("code", "delete", code["id"])
    with pytest.raises(ConfigError, match="NAME=VALUE"):
        maas("enrol-code", "--metadata", "room")


def test_code_that_ran_out_is_shown_as_expired(maas: Run, monkeypatch):
    maas("enrol-code", "--expires-in", "1m")
    now = time.time()
    monkeypatch.setattr(device_codes.time, "time", lambda: now + 61)
    assert "expired" in maas("code", "list", as_json=False)


def test_lists_go_on_after_a_page(maas: Run):
    first, second = (maas("enrol-code")["id"] for _ in range(2))
    maas("group", "create", "shops", "--channel", "beta")
    page = maas("code", "list", "--limit", "1")
    assert [item["id"] for item in page["data"]] == [second]
    assert f"--after {second}" in maas("code", "list", "--limit", "1", as_json=False)
    (rest,) = maas("code", "list", "--after", second)["data"]
    assert rest["id"] == first
    assert "--after" not in maas("code", "list", as_json=False)
    (group,) = maas("group", "list", "--after", "default")["data"]
    assert group["name"] == "shops"
    (channel,) = maas("channel", "list", "--limit", "1")["data"]
    assert channel["name"] == "stable"


def test_device_is_renamed(maas: Run, device: FakeDevice):
    changed = maas("assign", device.id, "--name", "hall", "--metadata", "floor=2")
    assert (changed["name"], changed["metadata"]) == ("hall", {"floor": "2"})


def test_channel_is_cleared_and_deleted(gateway, project, maas: Run, device: FakeDevice):
    bundle_id = made_bundle(gateway.store, project[0], gateway.home, "b")
    maas("channel", "set", "stable", "--bundle", bundle_id)
    assert maas("channel", "show", "stable")["bundle_id"] == bundle_id
    assert device.beat()["desired"]["bundle_id"] == bundle_id
    assert maas("channel", "clear", "stable")["bundle_id"] is None
    assert device.beat()["desired"] is None
    for command in ("show", "clear", "delete"):
        with pytest.raises(NotFound):
            maas("channel", command, "stabel")
    assert [item["name"] for item in maas("channel", "list")["data"]] == ["stable"]
    with pytest.raises(Conflict, match="the group default follows"):
        maas("channel", "delete", "stable")
    maas("channel", "set", "beta", "--bundle", bundle_id)
    assert maas("channel", "delete", "beta")["deleted"] is True


def test_groups_are_made_changed_and_removed(maas: Run, engine: FakeEngine):
    made = maas("group", "create", "shops", "--fallback-model", "tiny", "--heartbeat-s", "30")
    assert (made["fallback_model"], made["heartbeat_s"], made["channel"]) == ("tiny", 30, "stable")
    with pytest.raises(Conflict):
        maas("group", "create", "shops")
    assert maas("group", "show", "shops") == made
    changed = maas("group", "set", "shops", "--no-fallback", "--channel", "beta")
    assert (changed["fallback_model"], changed["channel"]) == (None, "beta")
    with pytest.raises(ConfigError, match="nothing to change"):
        maas("group", "set", "shops")
    assert [item["name"] for item in maas("group", "list")["data"]] == ["shops"]
    assert {item["name"] for item in maas("channel", "list")["data"]} == {"stable", "beta"}
    assert "shops" in maas("group", "list", as_json=False)
    assert maas("group", "delete", "shops")["deleted"] is True


def test_rollout_is_started_watched_and_ended(gateway, project, maas, device):
    bad = made_bundle(gateway.store, project[0], gateway.home, "bad")
    device.fails = frozenset({bad})
    stages = ("--stages", "100:10m", "--max-failure-percent", "10", "--metadata", "a=b")
    rollout = maas("rollout", "start", bad, *stages)
    assert rollout["metadata"] == {"a": "b"}
    assert rollout["stages"] == [{"percent": 100.0, "min_s": 600.0}]
    device.beat()
    device.beat()
    shown = maas("rollout", "show", rollout["id"], as_json=False)
    assert "halted" in shown
    assert "1 of 1 devices that reported failed" in shown
    assert "halted" in maas("rollout", "list", as_json=False)
    assert maas("rollout", "resume", rollout["id"])["attempt"] == 2
    assert maas("rollout", "pause", rollout["id"])["status"] == "paused"
    assert maas("rollout", "cancel", rollout["id"])["status"] == "cancelled"
    assert maas("rollout", "list")["data"][0]["id"] == rollout["id"]
    with pytest.raises(ConfigError, match="no percentage"):
        maas("rollout", "start", bad, "--stages", "some")
