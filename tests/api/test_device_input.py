"""Nonsense told to the fleet's routes: refused with its reason, and nothing is changed."""

import json
import time
from collections.abc import Iterator

import pytest
from httpx import Client

from maas.gateway.devices.pace import BURST, INTERVAL_S
from tests.api.conftest import RunningGateway
from tests.api.fleet_yard import Yard, open_yard
from tests.fakes.devices import heartbeat_of


@pytest.fixture
def yard(gateway: RunningGateway) -> Iterator[Yard]:
    with open_yard(gateway) as yard:
        yield yard


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b"[" * 60_000,
        b'{"agent_version": "1", "started_at": 0, "state": "ok", "machine": ' + b"[" * 50_000,
        b'{"agent_version": "1", "started_at": NaN, "state": "ok"}',
        b'{"agent_version": "1", "started_at": 1e999, "state": "ok"}',
        b'{"agent_version": "1", "started_at": -1, "state": "ok"}',
        b'{"agent_version": "1", "started_at": 0, "state": "well"}',
        b'{"agent_version": "1", "started_at": 0, "state": "ok", "bundle_id": "a\\u0000b"}',
        b'{"agent_version": "1", "started_at": 0, "state": "ok", "bundle_id": "../../etc"}',
        b'{"agent_version": "1", "started_at": 0, "state": "ok", "bundle_id": "abc\\n"}',
        json.dumps(
            heartbeat_of(update={"bundle_id": "b", "attempt": 2**31, "status": "failed"})
        ).encode(),
        b'{"agent_version": "\\ud800", "started_at": 0, "state": "ok"}',
        b'{"agent_version": "1", "started_at": 0, "state": "ok", "speed": {"load_s": 1e300}}',
        b'{"agent_version": "1", "started_at": 0, "state": "ok", "counters": {"queued": -1}}',
        b'{"agent_version": "1", "started_at": 0, "state": "ok", "pace": {"share": 1.1}}',
        json.dumps(heartbeat_of(agent_version="x" * 129)).encode(),
        json.dumps(heartbeat_of(errors=[{"at": 1, "code": "c", "message": "m"}] * 21)).encode(),
        json.dumps(
            heartbeat_of(update={"bundle_id": "b", "attempt": 0, "status": "lost"})
        ).encode(),
    ],
    ids=lambda body: repr(body[:60]),
)
def test_heartbeat_of_nonsense_is_a_400_and_changes_nothing(yard: Yard, body: bytes) -> None:
    device = yard.device()
    with Client(base_url=yard.gateway.url, timeout=30) as client:
        headers = {"Authorization": f"Bearer {device.key}"}
        answer = client.post("/v1/devices/heartbeat", content=body, headers=headers)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert yard.get(f"/{device.id}")["last_seen_at"] is None


def test_strange_text_in_a_heartbeat_is_kept_as_text(yard: Yard) -> None:
    device = yard.device()
    message = "\0\x1b[31m\u202e<script>" + "é" * 1000
    device.beat(errors=[{"at": 1.5, "code": "a\0b", "message": message}])
    (error, _) = yard.get(f"/{device.id}/events")["data"]
    assert (error["type"], error["level"]) == ("error", "error")
    assert error["message"] == message.replace("\0", "")
    assert yard.get(f"/{device.id}")["reported"]["errors"][0]["message"] == message


def test_bodies_over_their_limit_are_a_413(yard: Yard) -> None:
    device = yard.device()
    big = {"agent_version": "1", "started_at": 0, "state": "ok", "pad": "x" * 70_000}
    with Client(base_url=yard.gateway.url, timeout=30) as client:
        headers = {"Authorization": f"Bearer {device.key}"}
        answer = client.post("/v1/devices/heartbeat", json=big, headers=headers)
    assert answer.status_code == 413
    assert yard.enrol(yard.code(), facts={"a": "x" * 20_000}).status_code == 413


@pytest.mark.parametrize(
    "fields",
    [
        {"nonce": "short"},
        {"nonce": "n" * 129},
        {"nonce": "n n" * 20},
        {"nonce": "n" * 32 + "\n"},
        {"name": ""},
        {"name": "n" * 256},
        {"name": "\x1b]0;title\x07"},
        {"facts": {"a": [1]}},
        {"facts": {"a": {"b": {"c": 1}}}},
        {"facts": {f"k{n}": n for n in range(65)}},
        {"project_id": "another"},
        {"group": "another"},
    ],
    ids=lambda fields: repr(fields)[:40],
)
def test_enrolment_of_nonsense_is_a_400_and_leaves_the_code(yard: Yard, fields: dict) -> None:
    code = yard.code()
    answer = yard.enrol(code, **fields)
    assert answer.status_code == 400, answer.text
    assert yard.enrol(code).status_code == 200


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/enrolment_codes", {"expires_in_s": 59}),
        ("/enrolment_codes", {"expires_in_s": 2_592_001}),
        ("/enrolment_codes", {"group": "../x"}),
        ("/enrolment_codes", {"metadata": {"k": "v" * 5000}}),
        ("/groups", {"name": "a/b"}),
        ("/groups", {"name": "g", "heartbeat_s": 0}),
        ("/groups", {"name": "g", "heartbeat_s": True}),
        ("/groups", {"name": "g", "channel": "a b"}),
        ("/channels/a%20b", {"bundle_id": None}),
        ("/channels/stable", {}),
        ("/rollouts", {"channel": "stable", "bundle_id": "BUNDLE", "stages": []}),
        ("/rollouts", {"channel": "stable", "bundle_id": "BUNDLE", "stages": [{"percent": 50}]}),
        (
            "/rollouts",
            {
                "channel": "stable",
                "bundle_id": "BUNDLE",
                "stages": [{"percent": 100}, {"percent": 100}],
            },
        ),
        (
            "/rollouts",
            {"channel": "stable", "bundle_id": "BUNDLE", "stages": [{"percent": 101}]},
        ),
        ("/rollouts", {"channel": "stable", "bundle_id": "BUNDLE", "max_failure_percent": -1}),
        ("/rollouts", {"channel": "stable", "bundle_id": "BUNDLE", "min_reports": 0}),
    ],
    ids=str,
)
def test_fleet_of_nonsense_is_a_400(yard: Yard, path: str, body: dict) -> None:
    given = {name: yard.bundle() if value == "BUNDLE" else value for name, value in body.items()}
    yard.post(path, given, status=400)
    assert yard.get("/rollouts")["data"] == []


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/devices/rollouts", '"max_failure_percent": X'),
        ("/v1/devices/rollouts", '"min_reports": X'),
        ("/v1/devices/rollouts", '"stages": [{"percent": X}]'),
        ("/v1/devices/rollouts", '"stages": [{"percent": 100, "min_s": X}]'),
        ("/v1/exports", '"quality": {"max_kl_divergence": X}'),
        ("/v1/exports", '"quality": {"min_score_percent": X}'),
        ("/v1/exports", '"quality": {"goal_percent": X}'),
        ("/v1/exports", '"quality": {"max_attempts": X}'),
        ("/v1/exports", '"shrink": {"target_parameters": 1, "recover_s": X}'),
        ("/v1/exports", '"shrink": {"target_size_bytes": X}'),
    ],
)
def test_what_is_no_number_is_a_400(yard: Yard, path: str, fields: str, number: str) -> None:
    needed = '"model": "tiny"' if path == "/v1/exports" else '"channel": "c", "bundle_id": "b"'
    body = f"{{{needed}, {fields.replace('X', number)}}}"
    headers = {"Content-Type": "application/json"}
    answer = yard.client.post(path, content=body, headers=headers)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_device_that_sends_without_end_is_told_to_wait(yard: Yard) -> None:
    device, other = yard.device(), yard.device()
    answers = [device.try_beat() for _ in range(60)]
    refused = [answer for answer in answers if answer.status_code == 429]
    assert refused
    assert [answer.status_code for answer in answers[:BURST]] == [200] * BURST
    assert int(refused[0].headers["retry-after"]) == 1
    assert refused[0].headers["x-maas-limit"] == "heartbeats_per_device"
    other.beat()
    time.sleep(INTERVAL_S)
    device.beat()
