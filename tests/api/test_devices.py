"""The fleet over real HTTP: enrolled, told what to run, watched, retired; and nothing beyond."""

import secrets
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest
from httpx import Client

from maas.core.ids import new_id
from maas.store.roles import ORGANIZATION_SCOPE
from tests.api.conftest import RunningGateway
from tests.fakes.devices import FakeDevice, enrolled, heartbeat_of, made_bundle

NONCE = "a" * 32


@dataclass
class Yard:
    """A project of its own with its operator's client."""

    gateway: RunningGateway
    project_id: str
    client: Client

    def bundle(self, name: str = "b") -> str:
        return made_bundle(self.gateway.store, self.project_id, self.gateway.home, name)

    def device(self, **code: object) -> FakeDevice:
        return enrolled(self.client, self.gateway.url, **code)

    def get(self, path: str) -> dict:
        answer = self.client.get(f"/v1/devices{path}")
        assert answer.status_code == 200, answer.text
        return answer.json()

    def post(self, path: str, body: dict | None = None, status: int = 200) -> dict:
        answer = self.client.post(f"/v1/devices{path}", json=body)
        assert answer.status_code == status, answer.text
        return answer.json()

    def code(self, **fields: object) -> str:
        return self.post("/enrolment_codes", fields)["code"]

    def enrol(self, code: str, nonce: str = NONCE, **fields: object):
        with Client(base_url=self.gateway.url, timeout=30) as client:
            body = {"code": code, "nonce": nonce, **fields}
            return client.post("/v1/devices/enrol", json=body)


@pytest.fixture
def yard(gateway: RunningGateway) -> Iterator[Yard]:
    store = gateway.store
    organization = store.tenancy.organizations.find("default")
    project = store.tenancy.projects.create(organization.id, new_id("fleet"))
    _, key = store.keys.create(project_id=project.id, name="k", scopes=(ORGANIZATION_SCOPE,))
    gateway.wait_seen()
    headers = {"Authorization": f"Bearer {key}"}
    with Client(base_url=gateway.url, headers=headers, timeout=30) as client:
        yield Yard(gateway, project.id, client)


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
    events = yard.get(f"/{device['id']}/events")["data"]
    assert [event["type"] for event in events] == ["update_succeeded", "enrolled"]
    assert yard.client.delete(f"/v1/devices/{device['id']}").json()["deleted"] is True
    assert fake.try_beat().status_code == 401
    assert yard.get(f"/{device['id']}")["status"] == "retired"
    assert yard.get("?status=enrolled")["data"] == []
    assert [item["id"] for item in yard.get("?status=retired")["data"]] == [device["id"]]


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
