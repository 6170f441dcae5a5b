"""Hostile input against the control plane: refused with a reason, and nothing of it is stored."""

import json

import pytest
from httpx import Client

from maas.store.pages import Window
from maas.store.roles import ORGANIZATION_SCOPE
from tests.api.conftest import RunningGateway

PROJECTS = "/v1/organization/projects"


@pytest.fixture(scope="module")
def organization(gateway: RunningGateway):
    return gateway.store.tenancy.organizations.create("victim")


@pytest.fixture(scope="module")
def project(gateway: RunningGateway, organization):
    return gateway.store.tenancy.projects.default_of(organization.id)


@pytest.fixture(scope="module")
def client(gateway: RunningGateway, project):
    _, key = gateway.store.keys.create(
        project_id=project.id, name="owner", scopes=(ORGANIZATION_SCOPE,)
    )
    gateway.wait_seen()
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    with Client(base_url=gateway.url, headers=headers, timeout=10) as client:
        yield client


@pytest.mark.parametrize("with_key", [False, True])
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'"name"',
        b"null",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"name":' + b"[" * 50_000,
        b'{"name": "p", "name": 1}',
        b'{"name": 1}',
        b'{"name": null}',
        b'{"name": "a\\u0000b"}',
        b'{"name": "\\ud800"}',
        b'{"name": "p", "weight": 1e400}',
        b'{"name": "p", "weight": NaN}',
        b'{"name": "p", "weight": true}',
        b'{"name": "p", "weight": "2"}',
        b'{"name": "p", "priority": "now"}',
        b'{"name": "p", "organization_id": "org-1"}',
        b'{"name": "p", "id": "proj-1"}',
        json.dumps({"name": "n" * 256}).encode(),
        json.dumps({"name": "\x1b]0;title\x07"}).encode(),
        json.dumps({"name": "two\nlines"}).encode(),
        json.dumps({"name": "\u202egnp.exe"}).encode(),
    ],
    ids=lambda value: repr(value[:24]) if isinstance(value, bytes) else None,
)
def test_project_of_nonsense_is_a_400(gateway, client, organization, body, with_key, request):
    headers = {"Idempotency-Key": str(abs(hash(body)))} if with_key else {}
    answer = client.post(PROJECTS, content=body, headers=headers)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["type"] == "invalid_request_error"
    page = gateway.store.tenancy.projects.list(organization.id, Window())
    assert [item.name for item in page.items] == ["default"]


@pytest.mark.parametrize(
    "path",
    [
        f"{PROJECTS}/..%2f..%2fmodels",
        f"{PROJECTS}/proj-1'%20OR%20'1'='1",
        f"{PROJECTS}/%00",
        f"{PROJECTS}/{'x' * 3000}",
        f"{PROJECTS}/%F0%9F%92%A9",
        "/v1/organization/users/%00",
        "/v1/organization/admin_api_keys/%ff",
    ],
)
def test_id_of_nonsense_is_a_404(client, path):
    answer = client.get(path)
    assert answer.status_code in {400, 404}, answer.text
    assert answer.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        "limit=101",
        "limit=many",
        "after=%00",
        "after=proj-nowhere",
        "order=up",
        "after=" + "x" * 3000,
    ],
)
def test_page_of_nonsense_is_a_400(client, query):
    assert client.get(f"{PROJECTS}?{query}").status_code == 400


@pytest.mark.parametrize(
    "query",
    [
        "after=-1",
        "after=audit-x",
        "effective_at[gte]=soon",
        f"effective_at[gt]={'9' * 400}",
        f"after=audit-{'9' * 30}",
    ],
)
def test_part_of_the_log_that_is_nonsense_is_a_400(client, query):
    assert client.get(f"/v1/organization/audit_logs?{query}").status_code == 400


@pytest.mark.parametrize("what", ["usage/completions", "costs"])
@pytest.mark.parametrize(
    "query",
    [
        "",
        "start_time=-1",
        "start_time=soon",
        f"start_time={10**18}&end_time={10**18 + 5}",
        f"start_time={10**30}&end_time={10**30 + 5}",
        f"start_time=0&end_time={10**30}",
        "start_time=5&end_time=5",
        "start_time=0&page=page_x",
    ],
)
def test_period_that_is_nonsense_is_a_400(client, what, query):
    assert client.get(f"/v1/organization/{what}?{query}").status_code == 400


def test_key_with_strange_restrictions_is_kept_or_refused_never_lost(client, project, gateway):
    for models in (["a\u0000b"], ["\u2603"], ["m" * 5000], [""]):
        answer = client.post(
            f"{PROJECTS}/{project.id}/api_keys", json={"name": "k", "models": models}
        )
        assert answer.status_code in {200, 400}, answer.text
        if answer.status_code == 200:
            assert answer.json()["models"] == models
    assert gateway.store.tenancy.audit.verify().is_whole


def test_wrong_method_is_a_405_and_unknown_route_a_404(client):
    assert client.put(PROJECTS, json={}).status_code == 405
    assert client.post("/v1/organization/nothing", json={}).status_code == 404
    headers = {"Idempotency-Key": "k"}
    assert client.post("/v1/organization/nothing", json={}, headers=headers).status_code == 404
