"""A project with devices, and its operator's client."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from httpx import Client

from maas.core.ids import new_id
from maas.store.roles import ORGANIZATION_SCOPE
from tests.api.conftest import RunningGateway
from tests.fakes.devices import FakeDevice, enrolled, made_bundle

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


@contextmanager
def open_yard(gateway: RunningGateway) -> Iterator[Yard]:
    store = gateway.store
    organization = store.tenancy.organizations.find("default")
    project = store.tenancy.projects.create(organization.id, new_id("fleet"))
    _, key = store.keys.create(project_id=project.id, name="k", scopes=(ORGANIZATION_SCOPE,))
    gateway.wait_seen()
    headers = {"Authorization": f"Bearer {key}"}
    with Client(base_url=gateway.url, headers=headers, timeout=30) as client:
        yield Yard(gateway, project.id, client)
