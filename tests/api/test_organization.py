"""``/v1/organization`` driven by OpenAI's own client: each understands the other."""

import json
from collections.abc import Iterator

import openai
import pytest
from openai import OpenAI

from maas.store.audit_log import verify_lines
from maas.store.key_terms import KeyTerms
from maas.store.records import Role
from maas.store.roles import ADMIN_SCOPE, ORGANIZATION_SCOPE
from tests.api.conftest import RunningGateway


@pytest.fixture(scope="module")
def admin(gateway: RunningGateway) -> Iterator[OpenAI]:
    """The owner of an organisation of its own."""
    organization = gateway.store.tenancy.organizations.create("acme")
    project = gateway.store.tenancy.projects.default_of(organization.id)
    _, key = gateway.store.keys.create(
        project_id=project.id, name="owner", scopes=(ORGANIZATION_SCOPE,)
    )
    gateway.wait_seen()
    with OpenAI(
        base_url=f"{gateway.url}/v1", admin_api_key=key, api_key=key, max_retries=0
    ) as client:
        yield client


@pytest.fixture(scope="module")
def organization(admin: OpenAI):
    return admin.admin.organization


@pytest.fixture
def project(organization, request: pytest.FixtureRequest):
    return organization.projects.create(name=request.node.name[:200])


def test_project_lives_from_creation_to_archive(organization):
    made = organization.projects.create(name="shop")
    assert (made.object, made.status) == ("organization.project", "active")
    assert organization.projects.retrieve(made.id).name == "shop"
    assert organization.projects.update(made.id, name="store").name == "store"
    assert made.id in {item.id for item in organization.projects.list()}
    archived = organization.projects.archive(made.id)
    assert archived.status == "archived"
    assert archived.archived_at is not None
    assert made.id not in {item.id for item in organization.projects.list()}
    assert made.id in {item.id for item in organization.projects.list(include_archived=True)}


def test_only_the_operator_gives_more_weight(gateway, organization, project, admin):
    path = f"/organization/projects/{project.id}"
    with pytest.raises(openai.PermissionDeniedError, match="operator"):
        admin.post(path, cast_to=object, body={"weight": 2})
    with pytest.raises(openai.PermissionDeniedError, match="operator"):
        admin.post("/organization/projects", cast_to=object, body={"name": "p", "weight": 2})
    _, key = gateway.store.keys.create(
        project_id=project.id, name="operator", scopes=(ADMIN_SCOPE,)
    )
    gateway.wait_seen()
    operator = admin.with_options(
        admin_api_key=key, api_key=key, default_headers={"OpenAI-Organization": "acme"}
    )
    changed = operator.post(path, cast_to=object, body={"weight": 2})
    assert changed["weight"] == 2


def test_pages_follow_each_other_without_gap_or_repeat(organization):
    made = [organization.projects.create(name=f"page-{n}").id for n in range(5)]
    page = organization.projects.list(limit=2)
    assert len(page.data) == 2
    assert page.has_more
    everything = [item.id for item in organization.projects.list(limit=2)]
    assert len(everything) == len(set(everything))
    assert everything[-5:] == made


def test_service_account_comes_with_a_key_that_works_at_once(
    organization, project, gateway, engine
):
    made = organization.projects.service_accounts.create(project.id, name="robot")
    assert made.role == "member"
    assert made.api_key is not None
    with OpenAI(base_url=f"{gateway.url}/v1", api_key=made.api_key.value) as client:
        answer = client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "hello"}]
        )
    assert answer.choices
    key = organization.projects.api_keys.retrieve(made.api_key.id, project_id=project.id)
    assert key.owner.type == "service_account"
    assert made.api_key.value.split("-", 3)[3] not in key.redacted_value


def test_users_get_roles_in_projects(organization, project, admin):
    user = admin.post(
        "/organization/users",
        cast_to=object,
        body={"email": "ada@example.org", "name": "Ada", "role": "reader"},
        options={"security": {"admin_api_key_auth": True}},
    )
    assert organization.users.retrieve(user["id"]).role == "reader"
    member = organization.projects.users.create(project.id, user_id=user["id"], role="member")
    assert member.role == "member"
    assert (
        organization.projects.users.update(user["id"], project_id=project.id, role="owner").role
        == "owner"
    )
    assert organization.users.update(user["id"], role="owner").role == "owner"
    assert organization.projects.users.delete(user["id"], project_id=project.id).deleted
    assert organization.users.delete(user["id"]).deleted
    with pytest.raises(openai.NotFoundError):
        organization.users.retrieve(user["id"])


def test_rate_limits_are_listed_for_every_model_and_changed(organization, project, engine):
    listed = {
        item.model: item for item in organization.projects.rate_limits.list_rate_limits(project.id)
    }
    assert {"*", "tiny"} <= set(listed)
    changed = organization.projects.rate_limits.update_rate_limit(
        "rl-tiny", project_id=project.id, max_requests_per_1_minute=60
    )
    assert (changed.max_requests_per_1_minute, changed.max_tokens_per_1_minute) == (60, None)
    changed = organization.projects.rate_limits.update_rate_limit(
        "rl-tiny", project_id=project.id, max_tokens_per_1_minute=9000
    )
    assert (changed.max_requests_per_1_minute, changed.max_tokens_per_1_minute) == (60, 9000)


def test_budget_is_set_shown_and_removed(organization, project):
    budget = {"currency": "USD", "interval": "month", "threshold_amount": 12_345}
    organization.projects.spend_limit.update(project.id, **budget)
    seen = organization.projects.spend_limit.retrieve(project.id)
    assert (seen.threshold_amount, seen.enforcement.status) == (12_345, "inactive")
    assert organization.projects.spend_limit.delete(project.id).deleted
    with pytest.raises(openai.NotFoundError):
        organization.projects.spend_limit.retrieve(project.id)


def test_admin_keys_administer_and_ask_no_model(organization, gateway, engine):
    made = organization.admin_api_keys.create(name="second", expires_in_seconds=3600)
    assert made.expires_at - made.created_at == 3600
    assert made.id in {item.id for item in organization.admin_api_keys.list()}
    with OpenAI(
        base_url=f"{gateway.url}/v1", admin_api_key=made.value, api_key=made.value, max_retries=0
    ) as client:
        assert client.admin.organization.projects.list().data
        with pytest.raises(openai.PermissionDeniedError):
            client.chat.completions.create(
                model="tiny", messages=[{"role": "user", "content": "hello"}]
            )
        assert organization.admin_api_keys.delete(made.id).deleted
        with pytest.raises(openai.AuthenticationError):
            client.admin.organization.projects.list()


def test_audit_log_says_who_changed_what(organization, project):
    newest = organization.audit_logs.list(limit=1).data[0]
    assert newest.type == "project.created"
    assert newest.project_created.id == project.id
    assert newest.actor.type == "api_key"
    filtered = organization.audit_logs.list(
        event_types=["project.created"], effective_at={"gte": int(newest.effective_at)}
    )
    assert project.id in {item.project_created.id for item in filtered}
    assert {item.type for item in filtered} == {"project.created"}
    assert not organization.audit_logs.list(effective_at={"lt": 1000}).data


def test_audit_log_of_one_person_is_that_of_the_person_keys(organization, gateway, admin):
    tenancy = gateway.store.tenancy
    acme = tenancy.organizations.find("acme")
    first = tenancy.projects.default_of(acme.id)
    user = tenancy.users.create(acme.id, email="eve@example.org", name="Eve", role=Role.OWNER)
    _, value = gateway.store.keys.create(
        project_id=first.id, name="eve", terms=KeyTerms(user_id=user.id)
    )
    gateway.wait_seen()
    with OpenAI(base_url=f"{gateway.url}/v1", admin_api_key=value, api_key=value) as eve:
        made = eve.admin.organization.projects.create(name="eve's")
    found = organization.audit_logs.list(actor_emails=["eve@example.org"]).data
    assert [item.project_created.id for item in found] == [made.id]
    assert found[0].actor.api_key.user.id == user.id


def test_request_id_is_the_same_in_answer_and_audit_log(organization, gateway):
    answer = organization.projects.with_raw_response.create(name="traced")
    request_id = answer.headers["x-request-id"]
    newest = organization.audit_logs.list(limit=1).data[0]
    assert newest.model_extra["request_id"] == request_id


def test_export_and_verification_over_the_api(gateway, organization, admin):
    headers = {"Authorization": f"Bearer {admin.admin_api_key}"}
    path = "/v1/organization/audit_logs"
    lines = gateway.client.get(f"{path}/export", headers=headers).text.splitlines()
    acme = gateway.store.tenancy.organizations.find("acme").id
    assert lines
    assert {json.loads(line)["organization_id"] for line in lines} == {acme}
    verdict = gateway.client.get(f"{path}/verify", headers=headers).json()
    assert verdict == {"object": "organization.audit_log.verification", "is_whole": True}
    whole = gateway.client.get(f"{path}/export?everything=true", headers=headers)
    assert whole.status_code == 403


def test_operator_exports_the_whole_log_and_it_verifies(gateway, organization):
    _, key = gateway.store.keys.create(
        project_id=gateway.project_id, name="operator", scopes=(ADMIN_SCOPE,)
    )
    gateway.wait_seen()
    headers = {"Authorization": f"Bearer {key}"}
    path = "/v1/organization/audit_logs"
    answer = gateway.client.get(f"{path}/export?everything=true", headers=headers)
    verdict = verify_lines(answer.text.splitlines())
    seen = gateway.client.get(f"{path}/verify", headers=headers).json()
    assert verdict.is_whole
    assert (seen["head_hash"], seen["num_entries"]) == (verdict.head_hash, verdict.num_entries)
