"""The fleet over real HTTP: enrolled, told what to run, watched, retired; and nothing beyond."""

import json
import re
import secrets
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from httpx import Client

from maas.bootstrap.signing import make_signing
from maas.core.settings import Settings
from maas.edge.runtime.bundle.signing import key_id_of
from maas.store.audit_log import AuditFilter
from maas.store.key_terms import KeyTerms
from maas.store.roles import ORGANIZATION_SCOPE
from maas.store.rollouts import RolloutRepository
from tests.api.conftest import RunningGateway
from tests.api.fleet_yard import NONCE, Yard, open_yard
from tests.fakes.devices import FakeDevice, heartbeat_of, made_bundle
from tests.fakes.engine import FakeEngine


@pytest.fixture
def yard(gateway: RunningGateway) -> Iterator[Yard]:
    with open_yard(gateway) as yard:
        yield yard


def test_device_lives_from_its_code_to_its_end(yard: Yard) -> None:
    code = yard.post("/enrolment_codes", {"name": "kitchen", "metadata": {"room": "k"}})
    assert (code["object"], code["group"], code["used_at"]) == (
        "device.enrolment_code",
        "default",
        None,
    )
    enrolment = yard.enrol(code["code"], facts={"system": "Linux", "machine": {"num_cpus": 4}})
    assert enrolment.status_code == 200, enrolment.text
    assert enrolment.json()["object"] == "device.enrolment"
    device = enrolment.json()["device"]
    assert (device["object"], device["name"], device["status"]) == ("device", "kitchen", "enrolled")
    assert (device["metadata"], device["facts"]["machine"]) == ({"room": "k"}, {"num_cpus": 4})
    assert (device["last_seen_at"], device["is_online"], device["reported"]) == (None, False, None)
    fake = FakeDevice(yard.gateway.url, device["id"], enrolment.json()["key"])
    orders = fake.beat()
    assert orders["object"] == "device.heartbeat"
    assert (orders["desired"], orders["fallback_model"], orders["heartbeat_s"]) == (None, None, 60)
    bundle_id = yard.bundle()
    channel = yard.post("/channels/stable", {"bundle_id": bundle_id})
    assert (channel["object"], channel["bundle_id"]) == ("device.channel", bundle_id)
    desired = fake.beat()["desired"]
    assert desired == {
        "bundle_id": bundle_id,
        "size_bytes": 64,
        "attempt": 0,
        "rollout_id": None,
    }
    fake.beat()
    seen = yard.get(f"/{device['id']}")
    assert seen["is_online"]
    assert seen["reported"]["bundle_id"] == seen["desired_bundle_id"] == bundle_id
    assert seen["reported"]["memory"]["rss_bytes"] == 2**28
    assert seen["reported"]["pace"] == {"share": 1.0, "reason": "cool", "temperature_c": 48.5}
    events = yard.get(f"/{device['id']}/events")["data"]
    assert [event["type"] for event in events] == ["update_succeeded", "enrolled"]
    assert yard.client.delete(f"/v1/devices/{device['id']}").json()["deleted"] is True
    assert fake.try_beat().status_code == 401
    assert yard.get(f"/{device['id']}")["status"] == "retired"
    assert yard.get("?status=enrolled")["data"] == []
    assert [item["id"] for item in yard.get("?status=retired")["data"]] == [device["id"]]


def test_the_key_of_bundles_is_told_where_there_is_one(yard: Yard) -> None:
    first = yard.enrol(yard.code()).json()
    assert first["bundle_public_key"] is None
    missing = yard.client.get("/v1/bundles/signing_key")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "not_found")
    make_signing(Settings(home=yard.gateway.home), yard.gateway.store).private_key()
    code = yard.code()
    told, again = yard.enrol(code).json(), yard.enrol(code).json()
    shown = yard.client.get("/v1/bundles/signing_key").json()
    assert told["bundle_public_key"] == again["bundle_public_key"] == shown["public_key"]
    assert shown == {
        "object": "bundle.signing_key",
        "id": key_id_of(shown["public_key"]),
        "public_key": shown["public_key"],
    }


def test_code_works_once_and_the_same_request_gets_the_same_answer(yard: Yard) -> None:
    code = yard.code()
    first = yard.enrol(code)
    again = yard.enrol(code.upper().replace("-", " "))
    assert first.status_code == again.status_code == 200
    assert first.json()["key"] == again.json()["key"]
    assert first.json()["device"]["id"] == again.json()["device"]["id"]
    other = yard.enrol(code, nonce="b" * 32)
    assert (other.status_code, other.json()["error"]["code"]) == (401, "invalid_enrolment_code")
    unknown = yard.enrol("0" * 28)
    assert unknown.json() == other.json(), "the words are the same for all causes"
    assert len(yard.get("")["data"]) == 1
    with yard.gateway.store.database.engine.connect() as connection:
        rows = connection.exec_driver_sql("SELECT * FROM device_enrolment_codes").all()
    secret = first.json()["key"].split("-", 3)[3]
    assert not any(secret in str(row) for row in rows)
    assert not any(code.replace("-", "") in str(row) for row in rows)


def test_one_of_fifty_that_use_a_code_at_once_is_enrolled(yard: Yard) -> None:
    code = yard.code()
    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(lambda n: yard.enrol(code, nonce=secrets.token_hex(16)), range(50)))
    assert sorted(answer.status_code for answer in answers) == [200] + [401] * 49
    assert len(yard.get("")["data"]) == 1


def test_retired_device_is_not_given_its_key_again(yard: Yard) -> None:
    code = yard.code()
    device = yard.enrol(code).json()["device"]
    yard.client.delete(f"/v1/devices/{device['id']}")
    assert yard.enrol(code).status_code == 401


def test_heartbeat_is_answered_only_to_a_device(yard: Yard) -> None:
    beat = yard.client.post("/v1/devices/heartbeat", json=heartbeat_of())
    assert beat.status_code == 403
    assert yard.gateway.client.post("/v1/devices/heartbeat", json={}).status_code == 403


def test_lost_answer_is_had_by_asking_again(yard: Yard) -> None:
    """The client sends its request and is gone before the answer comes."""
    code = yard.code()
    body = json.dumps({"code": code, "nonce": NONCE}).encode()
    host, port = yard.gateway.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        head = f"POST /v1/devices/enrol HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
    deadline = time.monotonic() + 5
    while not (made := yard.get("")["data"]) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert len(made) == 1
    again = yard.enrol(code)
    assert again.json()["device"]["id"] == made[0]["id"]
    FakeDevice(yard.gateway.url, made[0]["id"], again.json()["key"]).beat()
    assert len(yard.get("")["data"]) == 1


def test_key_of_a_device_opens_nothing_else(yard: Yard) -> None:
    device, other = yard.device(), yard.device()
    document = yard.client.get("/openapi.json").json()
    own = {"/v1/devices/heartbeat", "/v1/devices/enrol", "/healthz", "/readyz"}
    ids = {"device_id": other.id, "bundle_id": yard.bundle(), "project_id": yard.project_id}
    with Client(base_url=yard.gateway.url, timeout=30) as client:
        client.headers["Authorization"] = f"Bearer {device.key}"
        for path, methods in document["paths"].items():
            names = re.findall(r"\{(\w+)\}", path)
            filled = path.format(**{name: ids.get(name, "x") for name in names})
            for method in methods if path not in own else ():
                answer = client.request(method.upper(), filled, json={})
                is_content = path.endswith("bundles/{bundle_id}/content")
                assert answer.status_code == (404 if is_content else 403), (path, answer.text)
    assert yard.get(f"/{other.id}")["status"] == "enrolled"


def test_device_reads_its_bundle_and_no_other(yard: Yard) -> None:
    device, wanted, other = yard.device(), yard.bundle("wanted"), yard.bundle("other")
    yard.post("/channels/stable", {"bundle_id": wanted})
    with Client(base_url=yard.gateway.url, timeout=30) as client:
        client.headers["Authorization"] = f"Bearer {device.key}"

        def read(bundle_id: str, **headers: str):
            return client.get(f"/v1/bundles/{bundle_id}/content", headers=headers)

        assert read(wanted).text == wanted
        assert read(wanted, Range="bytes=1-3").text == wanted[1:4]
        for hidden in (other, "0" * 64):
            assert (read(hidden).status_code, read(hidden).json()["error"]["code"]) == (
                404,
                "not_found",
            )
    stranger = made_bundle(yard.gateway.store, yard.gateway.project_id, yard.gateway.home, "theirs")
    yard.post("/channels/stable", {"bundle_id": stranger}, status=404)


def test_fallback_is_one_model_and_ends_with_the_groups(yard: Yard, engine: FakeEngine) -> None:
    plain = yard.device()
    yard.post("/groups", {"name": "helped", "fallback_model": "tiny", "heartbeat_s": 5})
    helped = yard.device(group="helped")
    assert (helped.beat()["fallback_model"], helped.beat()["heartbeat_s"]) == ("tiny", 5)

    def ask(device: FakeDevice, path: str = "chat/completions", model: str = "tiny") -> int:
        chat = {"messages": [{"role": "user", "content": "hello"}]}
        content = {"prompt": "hello"} if path == "completions" else chat
        with Client(base_url=yard.gateway.url, timeout=30) as client:
            client.headers["Authorization"] = f"Bearer {device.key}"
            return client.post(f"/v1/{path}", json={"model": model, **content}).status_code

    assert (ask(helped), ask(helped, "completions")) == (200, 200)
    assert ask(plain) == 403
    with Client(base_url=yard.gateway.url, timeout=30) as client:
        client.headers["Authorization"] = f"Bearer {helped.key}"
        answer = client.post("/v1/responses", json={"model": "tiny", "input": "hello"})
        assert answer.json()["error"]["code"] == "endpoint_not_allowed"
        assert client.get("/v1/models").status_code == 403
        assert client.post("/v1/files", files={"file": b"x"}).status_code == 403
    yard.post("/groups/helped", {"fallback_model": None})
    assert ask(helped) == 403
    yard.post(f"/{plain.id}", {"group": "helped"})
    yard.post("/groups/helped", {"fallback_model": "tiny"})
    assert (ask(plain), ask(helped)) == (200, 200)
    yard.gateway.deploy(engine, model="other")
    assert ask(helped, model="other") == 403
    yard.post("/groups", {"name": "odd", "fallback_model": "nobody"}, status=404)


def test_what_a_key_may_not_do_its_devices_may_not(yard: Yard, engine: FakeEngine) -> None:
    """A restricted key makes no device that could do more than itself."""
    yard.post("/groups", {"name": "helped", "fallback_model": "tiny"})
    store = yard.gateway.store
    for terms, is_allowed in (
        (KeyTerms(scopes=(ORGANIZATION_SCOPE,), models=("tiny",)), True),
        (KeyTerms(scopes=(ORGANIZATION_SCOPE,), models=("another",)), False),
        (KeyTerms(scopes=(ORGANIZATION_SCOPE,), networks=("127.0.0.0/8",)), False),
        (KeyTerms(scopes=(ORGANIZATION_SCOPE,), endpoints=("/v1/devices",)), False),
    ):
        _, key = store.keys.create(project_id=yard.project_id, name="r", terms=terms)
        yard.gateway.wait_seen()
        answer = yard.client.post(
            "/v1/devices/enrolment_codes",
            json={"group": "helped"},
            headers={"Authorization": f"Bearer {key}"},
        )
        assert (answer.status_code == 200) is is_allowed, answer.text


def test_plain_inference_key_manages_no_devices(yard: Yard) -> None:
    _, key = yard.gateway.store.keys.create(project_id=yard.project_id, name="app")
    yard.gateway.wait_seen()
    headers = {"Authorization": f"Bearer {key}"}
    for path in ("", "/groups", "/rollouts", "/summary"):
        assert yard.client.get(f"/v1/devices{path}", headers=headers).status_code == 403
    made = yard.client.post("/v1/devices/enrolment_codes", json={}, headers=headers)
    assert made.status_code == 403


def test_key_of_a_device_is_not_among_the_projects_keys(yard: Yard) -> None:
    device = yard.device()
    key_id = device.key.split("-")[2]
    path = f"/v1/organization/projects/{yard.project_id}/api_keys"
    assert key_id not in {item["id"] for item in yard.client.get(path).json()["data"]}
    for answer in (
        yard.client.get(f"{path}/{key_id}"),
        yard.client.post(f"{path}/{key_id}/rotate"),
        yard.client.delete(f"{path}/{key_id}"),
    ):
        assert answer.status_code == 404
    device.beat()
    for scopes in (["device"], ["device_fallback"]):
        made = yard.client.post(path, json={"name": "k", "scopes": scopes})
        assert made.status_code == 400


def test_rollout_halts_over_http_and_is_shown(yard: Yard) -> None:
    bad = yard.bundle("bad")
    device = yard.device()
    device.fails = frozenset({bad})
    rollout = yard.post(
        "/rollouts",
        {
            "channel": "stable",
            "bundle_id": bad,
            "stages": [{"percent": 100}],
            "metadata": {"a": "b"},
        },
    )
    assert (rollout["object"], rollout["status"], rollout["stage"]) == (
        "device.rollout",
        "running",
        0,
    )
    assert rollout["counts"] == {
        "targeted": 1,
        "eligible": 1,
        "succeeded": 0,
        "failed": 0,
        "pending": 1,
        "missing": 0,
    }
    assert device.beat()["desired"]["rollout_id"] == rollout["id"]
    assert device.beat()["desired"] is None
    halted = yard.get(f"/rollouts/{rollout['id']}")
    assert (halted["status"], halted["counts"]["failed"]) == ("halted", 1)
    assert "1 of 1" in halted["reason"]
    assert yard.post(f"/rollouts/{rollout['id']}/resume")["attempt"] == 2
    assert yard.post(f"/rollouts/{rollout['id']}/pause")["status"] == "paused"
    assert yard.post(f"/rollouts/{rollout['id']}/cancel")["finished_at"] is not None
    yard.post(f"/rollouts/{rollout['id']}/resume", status=409)


def test_rollout_that_fails_everywhere_never_completes(yard: Yard) -> None:
    """Fewer devices than the reports it should wait for."""
    bad = yard.bundle("bad")
    devices = [yard.device() for _ in range(4)]
    stages = [{"percent": 50}, {"percent": 100}]
    body = {"channel": "stable", "bundle_id": bad, "stages": stages, "min_reports": 10}
    rollout = yard.post("/rollouts", body)
    store = yard.gateway.store
    rollouts = RolloutRepository(store.database, store.clock)
    for device in devices:
        device.fails = frozenset({bad})
    for _ in range(6):
        for device in devices:
            device.beat()
        rollouts.advance(rollout["id"])
    halted = yard.get(f"/rollouts/{rollout['id']}")
    assert halted["status"] == "halted"
    assert halted["counts"]["failed"] >= 1
    assert yard.get("/channels/stable")["bundle_id"] is None
    assert [device.beat()["desired"] for device in devices] == [None] * 4


def test_changes_take_away_only_what_may_be_missing(yard: Yard) -> None:
    device = yard.device()
    for path, body in (
        (f"/{device.id}", {"name": None}),
        (f"/{device.id}", {"group": None}),
        ("/groups/default", {"channel": None}),
        ("/groups/default", {"heartbeat_s": None}),
    ):
        yard.post(path, body, status=400)
    changed = yard.post(
        f"/{device.id}", {"name": "hall", "channel": "beta", "metadata": {"a": "b"}}
    )
    assert (changed["name"], changed["channel"], changed["metadata"]) == (
        "hall",
        "beta",
        {"a": "b"},
    )
    assert yard.post(f"/{device.id}", {"channel": None})["channel"] is None
    assert yard.get(f"/{device.id}")["name"] == "hall"
    assert [item["name"] for item in yard.get("/channels")["data"]] == ["stable", "beta"]
    assert yard.get("/channels?limit=1")["last_id"] == "stable"
    assert yard.get("/channels?after=stable")["data"][0]["name"] == "beta"


def test_channel_is_deleted_once_nothing_follows_it(yard: Yard) -> None:
    device, bundle_id = yard.device(), yard.bundle()
    path = "/v1/devices/channels/beta"
    yard.post("/groups", {"name": "shops", "channel": "beta"})
    yard.post(f"/{device.id}", {"channel": "beta"})
    rollout = yard.post("/rollouts", {"channel": "beta", "bundle_id": bundle_id})
    for name, undo in (
        (rollout["id"], lambda: yard.post(f"/rollouts/{rollout['id']}/cancel", {})),
        ("shops", lambda: yard.client.delete("/v1/devices/groups/shops")),
        (device.id, lambda: yard.post(f"/{device.id}", {"channel": None})),
    ):
        refused = yard.client.delete(path)
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "conflict")
        assert name in refused.json()["error"]["message"]
        undo()
    gone = yard.client.delete(path).json()
    assert gone == {"object": "device.channel", "id": "beta", "deleted": True}
    assert yard.client.delete(path).status_code == 404
    assert [item["name"] for item in yard.get("/channels")["data"]] == ["stable"]
    wanted = AuditFilter(project_ids=(yard.project_id,))
    (told,) = yard.gateway.store.tenancy.audit.list(wanted, limit=1).items
    assert told.action == "device.channel.deleted"


def test_summary_counts_by_status_bundle_and_group(yard: Yard) -> None:
    bundle_id = yard.bundle()
    yard.post("/channels/stable", {"bundle_id": bundle_id})
    first, second, gone = yard.device(), yard.device(), yard.device()
    first.beat()
    first.beat(speed={"load_s": 0.5, "prefill_tok_s": 300.0, "decode_tok_s": 60.0})
    second.beat()
    yard.client.delete(f"/v1/devices/{gone.id}")
    summary = yard.get("/summary")
    assert summary["by_status"] == {"enrolled": 2, "retired": 1}
    assert summary["online"] == 2
    assert summary["by_bundle"] == {bundle_id: 1, "none": 1}
    assert summary["by_group"] == {"default": 2}
    assert summary["speed"]["decode_tok_s"] == {"median": 50.0, "num_devices": 2}


def test_heartbeat_of_a_newer_agent_is_understood(yard: Yard) -> None:
    device = yard.device()
    body = heartbeat_of() | {"mood": "fine", "memory": {"rss_bytes": 1, "swap_bytes": 2}}
    with Client(base_url=yard.gateway.url, timeout=30) as client:
        headers = {"Authorization": f"Bearer {device.key}"}
        answer = client.post("/v1/devices/heartbeat", json=body, headers=headers)
    assert answer.status_code == 200, answer.text
