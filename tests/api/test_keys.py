"""What restricts a key, seen from outside: model, route, network, time, role, project."""

import time

import pytest
from httpx import Client

from maas.store.key_terms import KeyTerms
from maas.store.records import Role
from tests.api.conftest import RunningGateway

HELLO = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}]}


@pytest.fixture
def make(gateway: RunningGateway):
    """Make a key on some terms and return a client with it."""
    clients: list[Client] = []

    def make_key(*, project_id: str | None = None, **terms) -> Client:
        _, value = gateway.store.keys.create(
            project_id=project_id or gateway.project_id, name="k", terms=KeyTerms(**terms)
        )
        gateway.wait_seen()
        clients.append(
            Client(base_url=gateway.url, headers={"Authorization": f"Bearer {value}"}, timeout=10)
        )
        return clients[-1]

    yield make_key
    for client in clients:
        client.close()


def chat(client: Client, **fields):
    return client.post("/v1/chat/completions", json={**HELLO, **fields})


def refusal(answer) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


def test_key_for_one_model_asks_and_sees_only_that(gateway, engine, make):
    gateway.deploy(engine, model="other")
    client = make(models=("tiny",))
    assert chat(client).status_code == 200
    assert refusal(chat(client, model="other")) == (403, "model_not_allowed")
    assert [item["id"] for item in client.get("/v1/models").json()["data"]] == ["tiny"]
    assert refusal(client.get("/v1/models/other")) == (403, "model_not_allowed")


def test_key_for_a_model_may_ask_it_under_an_alias(gateway, engine, make):
    gateway.store.aliases.point("alias-of-tiny", "tiny")
    assert chat(make(models=("tiny",)), model="alias-of-tiny").status_code == 200
    assert chat(make(models=("alias-of-tiny",)), model="alias-of-tiny").status_code == 200
    assert chat(make(models=("alias-of-tiny",)), model="tiny").status_code == 403


def test_key_for_one_route_is_refused_on_the_others(engine, make):
    client = make(endpoints=("/v1/chat/completions", "/v1/models"))
    assert chat(client).status_code == 200
    assert client.get("/v1/models").status_code == 200
    assert client.get("/v1/models/tiny").status_code == 200
    for path, body in (
        ("/v1/completions", {"model": "tiny", "prompt": "x"}),
        ("/v1/responses", {"model": "tiny", "input": "x"}),
    ):
        assert refusal(client.post(path, json=body)) == (403, "endpoint_not_allowed")


def test_route_of_responses_is_its_own_and_not_that_of_chat(engine, make):
    client = make(endpoints=("/v1/responses",))
    body = {"model": "tiny", "input": "x"}
    assert client.post("/v1/responses", json=body).status_code == 200
    assert refusal(chat(client)) == (403, "endpoint_not_allowed")


def test_key_is_accepted_from_its_networks_only(engine, make):
    assert chat(make(networks=("10.0.0.0/8", "127.0.0.0/8"))).status_code == 200
    client = make(networks=("10.0.0.0/8", "2001:db8::/32"))
    assert refusal(chat(client)) == (401, "ip_not_authorized")
    assert refusal(client.get("/v1/models")) == (401, "ip_not_authorized")


def test_forwarded_address_is_not_believed(engine, make):
    client = make(networks=("10.0.0.0/8",))
    client.headers["X-Forwarded-For"] = "10.1.2.3"
    client.headers["Forwarded"] = "for=10.1.2.3"
    assert chat(client).status_code == 401


def test_key_is_refused_from_the_moment_it_expires(engine, make):
    client = make(expires_at=time.time() + 1.0)
    assert chat(client).status_code == 200
    time.sleep(1.0)
    answer = chat(client)
    assert refusal(answer) == (401, "api_key_expired")
    assert answer.headers["www-authenticate"] == "Bearer"


def test_revocation_holds_within_a_second(gateway, engine, make):
    client = make()
    assert chat(client).status_code == 200
    gateway.store.keys.revoke(client.headers["Authorization"].split("-")[2])
    deadline = time.monotonic() + 1
    while chat(client).status_code != 401:
        assert time.monotonic() < deadline


def test_rotated_key_and_its_successor_both_work_until_the_overlap_ends(gateway, engine, make):
    old = make(models=("tiny",))
    _, value = gateway.store.keys.rotate(old.headers["Authorization"].split("-")[2], overlap_s=1.0)
    gateway.wait_seen()
    with Client(base_url=gateway.url, headers={"Authorization": f"Bearer {value}"}) as new:
        assert chat(old).status_code == 200
        assert chat(new).status_code == 200
        assert refusal(chat(new, model="no-such-model"))[0] == 404
        time.sleep(1.0)
        assert refusal(chat(old)) == (401, "api_key_expired")
        assert chat(new).status_code == 200


@pytest.mark.parametrize(
    ("role", "status"),
    [(Role.OWNER, 200), (Role.DEVELOPER, 200), (Role.BILLING, 403), (Role.VIEWER, 403)],
)
def test_role_decides_whether_a_service_account_asks_models(gateway, engine, make, role, status):
    account = gateway.store.tenancy.service_accounts.create(
        gateway.project_id, name="bot", role=role
    )
    client = make(service_account_id=account.id)
    assert chat(client).status_code == status
    # Whoever may not ask them may still see which there are.
    assert client.get("/v1/models").status_code == 200


def test_key_of_a_user_lives_as_long_as_the_membership(gateway, engine, make):
    tenancy = gateway.store.tenancy
    organization_id = tenancy.projects.get(gateway.project_id).organization_id
    user = tenancy.users.create(
        organization_id, email="dev@example.org", name="dev", role=Role.DEVELOPER
    )
    client = make(user_id=user.id)
    assert refusal(chat(client)) == (403, "access_withdrawn")
    tenancy.users.add_member(gateway.project_id, user.id, Role.DEVELOPER)
    gateway.wait_seen()
    assert chat(client).status_code == 200
    tenancy.users.modify_member(gateway.project_id, user.id, Role.VIEWER)
    gateway.wait_seen()
    assert refusal(chat(client)) == (403, "permission_denied")
    tenancy.users.remove_member(gateway.project_id, user.id)
    gateway.wait_seen()
    assert chat(client).status_code == 401


def test_keys_of_an_archived_project_or_organisation_are_refused(gateway, engine, make):
    tenancy = gateway.store.tenancy
    organization = tenancy.organizations.create("short-lived")
    first = tenancy.projects.default_of(organization.id)
    second = tenancy.projects.create(organization.id, "second")
    in_first, in_second = make(project_id=first.id), make(project_id=second.id)
    assert chat(in_second).status_code == 200
    tenancy.projects.archive(second.id)
    gateway.wait_seen()
    assert refusal(chat(in_second)) == (403, "access_withdrawn")
    assert chat(in_first).status_code == 200
    tenancy.organizations.archive(organization.id)
    gateway.wait_seen()
    assert refusal(chat(in_first)) == (403, "access_withdrawn")


def test_nothing_refused_reaches_the_engine(engine, make):
    chat(make(models=("other",)))
    chat(make(endpoints=("/v1/embeddings",)))
    chat(make(networks=("10.0.0.0/8",)))
    assert engine.requests == []


@pytest.mark.parametrize(
    ("role", "path", "method", "status"),
    [
        (Role.OWNER, "/v1/organization/audit_logs", "GET", 200),
        (Role.DEVELOPER, "/v1/organization/audit_logs", "GET", 403),
        (Role.VIEWER, "/v1/organization/projects", "GET", 200),
        (Role.VIEWER, "/v1/organization/projects", "POST", 403),
        (Role.DEVELOPER, "/v1/organization/projects", "POST", 403),
        (Role.BILLING, "/v1/organization/spend_limit", "POST", 200),
        (Role.DEVELOPER, "/v1/organization/spend_limit", "POST", 403),
        (Role.BILLING, "/v1/organization/admin_api_keys", "GET", 403),
        (Role.BILLING, "/v1/organization/projects/{}/api_keys", "POST", 403),
        (Role.DEVELOPER, "/v1/organization/projects/{}/api_keys", "POST", 200),
        (Role.DEVELOPER, "/v1/organization/projects/{}/service_accounts", "POST", 403),
        (Role.OWNER, "/v1/organization/projects/{}/service_accounts", "POST", 200),
    ],
)
def test_role_of_a_user_decides_on_the_control_plane(
    gateway, make, request, role, path, method, status
):
    tenancy = gateway.store.tenancy
    organization = tenancy.organizations.create(request.node.name[:200])
    project = tenancy.projects.default_of(organization.id)
    user = tenancy.users.create(organization.id, email="u@example.org", name="u", role=role)
    tenancy.users.add_member(project.id, user.id, role)
    client = make(project_id=project.id, user_id=user.id)
    body = {"threshold_amount": 100} if "spend" in path else {"name": "x"}
    answer = client.request(
        method, path.format(project.id), json=body if method == "POST" else None
    )
    assert answer.status_code == status, answer.text


def test_developer_makes_no_key_that_does_more_than_its_own(gateway, make):
    tenancy = gateway.store.tenancy
    organization = tenancy.organizations.create("ladder")
    project = tenancy.projects.default_of(organization.id)
    owner = tenancy.users.create(organization.id, email="o@x", name="o", role=Role.OWNER)
    developer = tenancy.users.create(organization.id, email="d@x", name="d", role=Role.DEVELOPER)
    tenancy.users.add_member(project.id, developer.id, Role.DEVELOPER)
    robot = tenancy.service_accounts.create(project.id, name="r", role=Role.OWNER)
    owned, _ = tenancy.keys.create(
        project_id=project.id, name="o", terms=KeyTerms(user_id=owner.id)
    )
    client = make(project_id=project.id, user_id=developer.id)
    keys = f"/v1/organization/projects/{project.id}/api_keys"
    for body in ({"user_id": owner.id}, {"service_account_id": robot.id}):
        assert client.post(keys, json={"name": "k", **body}).status_code == 403
    assert client.post(f"{keys}/{owned.id}/rotate", json={}).status_code == 403
    assert client.delete(f"{keys}/{owned.id}").status_code == 403
    assert client.post(keys, json={"name": "k", "user_id": developer.id}).status_code == 200


def test_what_restricts_a_key_restricts_those_it_makes(gateway, make):
    account = gateway.store.tenancy.service_accounts.create(
        gateway.project_id, name="bot", role=Role.DEVELOPER
    )
    keys = f"/v1/organization/projects/{gateway.project_id}/api_keys"
    free, _ = gateway.store.keys.create(project_id=gateway.project_id, name="free")
    client = make(
        service_account_id=account.id,
        models=("tiny", "other"),
        endpoints=("/v1/organization",),
        networks=("127.0.0.0/8",),
        expires_at=time.time() + 600,
    )
    same = {
        "name": "k",
        "models": ["tiny"],
        "endpoints": [f"{keys}/below"],
        "networks": ["127.0.0.0/16"],
        "expires_in_seconds": 60,
    }
    looser = [
        ("models", ["tiny", "else"]),
        ("endpoints", ["/v1/organizations"]),
        ("networks", ["127.0.0.0/7"]),
        ("networks", ["::/0"]),
        ("models", []),
        ("endpoints", []),
        ("networks", []),
        ("expires_in_seconds", None),
        ("expires_in_seconds", 700),
    ]
    for field, value in looser:
        answer = client.post(keys, json={**same, field: value})
        assert refusal(answer) == (403, "permission_denied"), (field, value)
    assert client.post(f"{keys}/{free.id}/rotate", json={}).status_code == 403
    assert client.post(keys, json=same).status_code == 200
    assert client.delete(f"{keys}/{free.id}").status_code == 200
    own = client.headers["Authorization"].split("-")[2]
    assert client.post(f"{keys}/{own}/rotate", json={}).status_code == 200


@pytest.mark.parametrize("is_program", [False, True], ids=["user", "service account"])
def test_owner_of_a_project_makes_no_key_that_reaches_past_it(gateway, make, is_program):
    tenancy = gateway.store.tenancy
    organization = tenancy.organizations.create(f"reach-{is_program}")
    project = tenancy.projects.default_of(organization.id)
    boss = tenancy.users.create(organization.id, email="o@x", name="o", role=Role.OWNER)
    owned, _ = tenancy.keys.create(project_id=project.id, name="o", terms=KeyTerms(user_id=boss.id))
    if is_program:
        robot = tenancy.service_accounts.create(project.id, name="r", role=Role.OWNER)
        client = make(project_id=project.id, service_account_id=robot.id)
    else:
        user = tenancy.users.create(organization.id, email="d@x", name="d", role=Role.DEVELOPER)
        tenancy.users.add_member(project.id, user.id, Role.OWNER)
        client = make(project_id=project.id, user_id=user.id)
    keys = f"/v1/organization/projects/{project.id}/api_keys"
    assert client.post(keys, json={"name": "k", "user_id": boss.id}).status_code == 403
    assert client.post(f"{keys}/{owned.id}/rotate", json={}).status_code == 403
    assert client.delete(f"{keys}/{owned.id}").status_code == 200


def test_no_key_of_a_tenant_handles_the_operators(gateway, make):
    operator, _ = gateway.store.keys.create(
        project_id=gateway.project_id, name="operator", scopes=("inference", "admin")
    )
    client = make(scopes=("organization",))
    path = f"/v1/organization/projects/{gateway.project_id}/api_keys/{operator.id}"
    assert client.post(f"{path}/rotate", json={}).status_code == 403
    assert client.delete(path).status_code == 403
    assert gateway.store.keys.get(operator.id).revoked_at is None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("networks", ["10.0.0"]),
        ("endpoints", ["chat/completions"]),
        ("models", "tiny"),
        ("expires_in_seconds", 0),
        ("scopes", ["admin"]),
        ("name", ""),
    ],
)
def test_key_that_makes_no_sense_is_refused_by_field(gateway, make, field, value):
    client = make(scopes=("organization",))
    body = {"name": "k", field: value}
    answer = client.post(f"/v1/organization/projects/{gateway.project_id}/api_keys", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == field
