"""``Idempotency-Key``: a POST that comes again, whatever crashed meanwhile, happens once."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from httpx import Client

from maas.store.idempotency import KEPT_S
from maas.store.pages import Window
from maas.store.records import Role
from maas.store.roles import ORGANIZATION_SCOPE
from maas.store.tenancy_tables import IdempotencyRow
from tests.api.conftest import RunningGateway, running_gateway
from tests.api.test_tenants import BASE, BUDGET, OWNED, SHARED, Tenant, content_of, tenant
from tests.conftest import REPOSITORY
from tests.fakes.adapters import CONFIG, safetensors_of, tensors_of

PROJECTS = "/v1/organization/projects"
CRASH = "tests.api.crashing_gateway"


@pytest.fixture
def organization(gateway: RunningGateway, request: pytest.FixtureRequest):
    return gateway.store.tenancy.organizations.create(request.node.name[:200])


@pytest.fixture
def key(gateway: RunningGateway, organization) -> str:
    project = gateway.store.tenancy.projects.default_of(organization.id)
    _, key = gateway.store.keys.create(
        project_id=project.id, name="owner", scopes=(ORGANIZATION_SCOPE,)
    )
    gateway.wait_seen()
    return key


@pytest.fixture
def client(gateway: RunningGateway, key: str):
    headers = {"Authorization": f"Bearer {key}"}
    with Client(base_url=gateway.url, headers=headers, timeout=30) as client:
        yield client


def names(gateway: RunningGateway, organization_id: str) -> list[str]:
    page = gateway.store.tenancy.projects.list(organization_id, Window(limit=100))
    return [project.name for project in page.items]


def post(client: Client, body: dict, key: str | None = "once", path: str = PROJECTS):
    return client.post(path, json=body, headers={"Idempotency-Key": key} if key else {})


def test_repeated_request_gets_the_first_answer_and_does_nothing(gateway, client, organization):
    first = post(client, {"name": "p"})
    again = post(client, {"name": "p"})
    assert (first.status_code, again.status_code) == (200, 200)
    assert again.content == first.content
    assert again.headers["content-type"] == first.headers["content-type"]
    assert "idempotent-replayed" not in first.headers
    assert again.headers["idempotent-replayed"] == "true"
    assert names(gateway, organization.id) == ["default", "p"]


def test_same_key_with_a_path_that_ends_otherwise_is_a_conflict(gateway, client, organization):
    project = gateway.store.tenancy.projects.default_of(organization.id)
    path = f"{PROJECTS}/{project.id}/rate_limits/rl-{'m' * 200}"
    body = {"max_requests_per_1_minute": 1}
    answers = [post(client, body, path=path + end) for end in "ab"]
    assert [answer.status_code for answer in answers] == [200, 409]


def test_same_key_with_another_body_is_a_conflict(gateway, client, organization):
    post(client, {"name": "p"})
    for body, path in (({"name": "q"}, PROJECTS), ({"name": "p"}, f"{PROJECTS}?x=1")):
        answer = post(client, body, path=path)
        assert answer.status_code == 409
        assert answer.json()["error"]["code"] == "idempotency_key_reused"
    assert names(gateway, organization.id) == ["default", "p"]


def test_same_key_on_another_route_is_a_conflict(client):
    post(client, {"name": "p"})
    path = "/v1/organization/admin_api_keys"
    assert post(client, {"name": "p"}, path=path).status_code == 409


def test_fifty_at_once_have_one_effect_and_one_answer(gateway, client, organization):
    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(lambda _: post(client, {"name": "p"}), range(50)))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.content for answer in answers}) == 1
    assert names(gateway, organization.id) == ["default", "p"]


def test_fifty_at_once_on_two_gateways_have_one_effect(gateway, client, key, organization):
    url = gateway.store.database.engine.url.render_as_string(hide_password=False)
    with (
        running_gateway(gateway.home, url) as other,
        Client(base_url=other.url, headers=client.headers, timeout=30) as second,
    ):
        clients = [client, second] * 25
        with ThreadPoolExecutor(50) as pool:
            answers = list(pool.map(lambda one: post(one, {"name": "p"}), clients))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.content for answer in answers}) == 1
    assert names(gateway, organization.id) == ["default", "p"]


def test_many_changes_with_and_without_keys_do_not_block_each_other(gateway, client, organization):
    def make(n: int):
        return post(client, {"name": f"p{n}"}, key=f"key-{n}" if n % 2 else None)

    with ThreadPoolExecutor(60) as pool:
        answers = list(pool.map(make, range(60)))
    assert {answer.status_code for answer in answers} == {200}, {a.text for a in answers}
    assert len(names(gateway, organization.id)) == 61


def test_refused_request_may_be_mended_and_sent_again(gateway, client, organization):
    assert post(client, {"name": ""}).status_code == 400
    assert post(client, {"name": "default"}).status_code == 409
    assert post(client, {"name": "p"}).status_code == 200
    assert names(gateway, organization.id) == ["default", "p"]


def test_answer_is_forgotten_after_a_day(gateway, client, organization):
    post(client, {"name": "p"})
    with gateway.store.database.write() as session:
        row = (
            session.query(IdempotencyRow)
            .filter_by(key="once")
            .order_by(IdempotencyRow.created_at.desc())
            .first()
        )
        row.created_at -= KEPT_S + 1
    assert post(client, {"name": "q"}).status_code == 200
    assert names(gateway, organization.id) == ["default", "p", "q"]


def test_another_key_of_the_project_is_not_given_the_answer(gateway, client, organization):
    made = post(client, {"name": "k"}, path="/v1/organization/admin_api_keys").json()
    with Client(base_url=gateway.url, timeout=10) as other:
        other.headers["Authorization"] = f"Bearer {made['value']}"
        answer = post(other, {"name": "k"}, path="/v1/organization/admin_api_keys")
    assert answer.status_code == 409
    assert made["value"] not in answer.text


def test_new_key_in_a_kept_answer_cannot_be_read_from_the_store(gateway, client):
    path = "/v1/organization/admin_api_keys"
    first = post(client, {"name": "k"}, path=path).json()
    assert post(client, {"name": "k"}, path=path).json() == first
    secret = first["value"].split("-", 3)[3].encode()
    with gateway.store.database.read() as session:
        bodies = [row.body for row in session.query(IdempotencyRow)]
    assert bodies
    assert all(secret not in body for body in bodies)


@pytest.mark.parametrize("given", [b"a b", b"x" * 256, b"\xe9"])
def test_nonsense_is_no_key(client, given):
    answer = client.post(PROJECTS, json={"name": "p"}, headers={b"Idempotency-Key": given})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "Idempotency-Key"


def test_empty_header_is_as_good_as_none(client):
    headers = {"Idempotency-Key": ""}
    for name in ("p", "q"):
        assert client.post(PROJECTS, json={"name": name}, headers=headers).status_code == 200


def test_unknown_caller_is_a_401_before_anything(gateway):
    with Client(base_url=gateway.url, timeout=10) as client:
        assert post(client, {"name": "p"}).status_code == 401


def test_body_over_the_limit_is_a_413(client):
    assert post(client, {"name": "p" * 300_000}).status_code == 413


@pytest.mark.parametrize("moment", ["before", "after"])
def test_crash_between_effect_and_answer_leaves_both_or_neither(gateway, key, organization, moment):
    """A gateway killed in the middle; the client sends its request again to another one."""
    url = gateway.store.database.engine.url.render_as_string(hide_password=False)
    crashed = subprocess.run(
        [sys.executable, "-m", CRASH, url, str(gateway.home), key, moment],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=REPOSITORY,
    )
    assert crashed.returncode == 9, crashed.stderr
    gateway.wait_seen()
    expected = ["default"] if moment == "before" else ["default", "p"]
    assert names(gateway, organization.id) == expected
    with Client(base_url=gateway.url, timeout=30) as client:
        client.headers["Authorization"] = f"Bearer {key}"
        answer = post(client, {"name": "p"})
    assert answer.status_code == 200
    assert answer.json()["name"] == "p"
    assert ("idempotent-replayed" in answer.headers) == (moment == "after")
    assert names(gateway, organization.id) == ["default", "p"]


# Every POST of the control plane, with a body that its owner could send. The others are relayed.
POSTS = {
    **{route: body for route, body in OWNED.items() if route.startswith("POST ")},
    "POST /v1/organization/projects": {"name": "p"},
    "POST /v1/organization/users": {"email": "new@ours.example", "name": "N", "role": "owner"},
    "POST /v1/organization/admin_api_keys": {"name": "k"},
    "POST /v1/organization/webhooks": {"name": "w", "url": "https://ours.example/other"},
    "POST /v1/organization/rate_limits/{rate_limit_id}": {"max_requests_per_1_minute": 5},
    "POST /v1/organization/spend_limit": BUDGET,
    "POST /v1/fine_tuning/jobs": {"model": BASE, "training_file": "FILE"},
    "POST /v1/exports": {"model": BASE},
    "POST /v1/devices/enrolment_codes": {"name": "kitchen"},
    "POST /v1/devices/groups": {"name": "shops"},
    "POST /v1/devices/rollouts": {"channel": "canary", "bundle_id": "BUNDLE"},
    "POST /v1/files": {"form": "data"},
    "POST /v1/adapters": {
        "model": "smollm2-135m-instruct",
        "config_file": "CONFIG",
        "weights_file": "WEIGHTS",
    },
    "POST /v1/uploads": {
        "filename": "f",
        "purpose": "fine-tune",
        "bytes": 4,
        "mime_type": "text/plain",
    },
}
RELAYED = {
    f"POST /v1/{name}" for name in ("chat/completions", "completions", "embeddings", "responses")
}
# What devices send themselves: an enrolment is known again by its nonce, a heartbeat changes
# nothing when it comes twice (test_devices.py).
OF_DEVICES = {"POST /v1/devices/enrol", "POST /v1/devices/heartbeat"}


@pytest.fixture(scope="module")
def owner(gateway: RunningGateway) -> Tenant:
    made = tenant(gateway, "repeating")
    joining = gateway.store.tenancy.users.create(
        made.organization_id, email="joins@ours.example", name="J", role=Role.OWNER
    )
    made.ids["joining"] = joining.id
    gateway.wait_seen()
    return made


def uploaded_adapter(gateway: RunningGateway, owner: Tenant) -> dict[str, str]:
    """Upload an adapter's two files; return their ids by what they are called in a body."""
    headers = {"Authorization": f"Bearer {owner.keys['admin']}"}
    contents = {
        "config_file": json.dumps(CONFIG).encode(),
        "weights_file": safetensors_of(tensors_of()),
    }
    return {
        name: gateway.client.post(
            "/v1/files",
            headers=headers,
            files={"file": content},
            data={"purpose": "adapter"},
        ).json()["id"]
        for name, content in contents.items()
    }


def test_every_route_that_creates_or_changes_is_in_the_table():
    known = {route for route in {*OWNED, *SHARED} if route.startswith("POST ")}
    assert known == {*POSTS, *RELAYED, *OF_DEVICES}


@pytest.mark.parametrize("route", sorted(POSTS, key=lambda route: route.endswith("archive")))
def test_every_route_does_a_repeated_request_once(gateway, owner, route):
    body = POSTS[route]
    if body is not None and body.get("user_id") == "USER":
        body = {**body, "user_id": owner.ids["joining"]}
    if body is not None and "part_ids" in body:
        body = {"part_ids": [owner.ids["part_id"]]}
    if body is not None and "training_file" in body:
        body = {**body, "training_file": owner.ids["file_id"]}
    if body is not None and body.get("bundle_id") == "BUNDLE":
        body = {**body, "bundle_id": owner.ids["bundle_id"]}
    if body is not None and "config_file" in body:
        body = {**body, **uploaded_adapter(gateway, owner)}
    headers = {
        "Authorization": f"Bearer {owner.keys['admin']}",
        "Idempotency-Key": f"once-{sorted(POSTS).index(route)}",
    }

    def send(content: dict | None):
        given = content_of(content)
        if route == "POST /v1/files":
            given = {"files": {"file": content["form"]}, "data": {"purpose": "fine-tune"}}
        return gateway.client.post(owner.path(route), headers=headers, **given)

    first, again = send(body), send(body)
    assert first.status_code == 200, first.text
    assert (again.status_code, again.content) == (first.status_code, first.content)
    assert "idempotent-replayed" not in first.headers
    assert again.headers["idempotent-replayed"] == "true"
    is_form = body is not None and "form" in body
    other = send({"form": "other"} if is_form else {**(body or {}), "name": "another"})
    assert other.status_code == 409
    assert other.json()["error"]["code"] == "idempotency_key_reused"
