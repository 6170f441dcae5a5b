"""Nobody sees or touches what belongs to another tenant: every route, asked with every key."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from httpx import Client, Response

from maas.bootstrap.fleet import fleet_of
from maas.core.ids import new_id
from maas.core.settings import Settings
from maas.finetune.adapter_files import CONFIG_NAME
from maas.store.blobs import open_blobs
from maas.store.device_groups import NewGroup
from maas.store.enrolment import Applicant
from maas.store.export_records import MadeBundle, NewExport
from maas.store.exports import ExportRepository
from maas.store.files import FileRepository, NewFile, blob_key_of, new_file_id
from maas.store.fleet_records import NewRollout
from maas.store.job_records import NewJob
from maas.store.key_terms import KeyTerms
from maas.store.limits import LimitKey
from maas.store.records import LimitScope, Role
from maas.store.roles import ADMIN_SCOPE, ORGANIZATION_SCOPE
from maas.store.rollout_rules import Stage
from maas.store.uploads import UploadPart, UploadRepository
from maas.store.webhooks import WebhookRepository
from tests.api.conftest import RunningGateway
from tests.fakes.adapters import tuned_model
from tests.fakes.devices import made_bundle

BASE = "smollm2-135m-instruct"
BUDGET = {"currency": "USD", "interval": "month", "threshold_amount": 1}
# The body of a route that takes a form; what it takes is ``data``.
FORM = {"form": "data"}
# Routes about one thing, and a body that its owner could send. A new route must come into one
# of these three tables; a route about somebody's things belongs here.
OWNED: dict[str, dict[str, Any] | None] = {
    "GET /v1/organization/projects/{project_id}": None,
    "POST /v1/organization/projects/{project_id}": {"name": "renamed"},
    "POST /v1/organization/projects/{project_id}/archive": None,
    "GET /v1/organization/projects/{project_id}/api_keys": None,
    "POST /v1/organization/projects/{project_id}/api_keys": {"name": "k"},
    "GET /v1/organization/projects/{project_id}/api_keys/{key_id}": None,
    "POST /v1/organization/projects/{project_id}/api_keys/{key_id}/rotate": {},
    "DELETE /v1/organization/projects/{project_id}/api_keys/{key_id}": None,
    "GET /v1/organization/projects/{project_id}/api_keys/{key_id}/rate_limits": None,
    "POST /v1/organization/projects/{project_id}/api_keys/{key_id}/rate_limits/{rate_limit_id}": {
        "max_requests_per_1_minute": 0
    },
    "GET /v1/organization/projects/{project_id}/service_accounts": None,
    "POST /v1/organization/projects/{project_id}/service_accounts": {"name": "s"},
    "GET /v1/organization/projects/{project_id}/service_accounts/{account_id}": None,
    "DELETE /v1/organization/projects/{project_id}/service_accounts/{account_id}": None,
    "GET /v1/organization/projects/{project_id}/users": None,
    "POST /v1/organization/projects/{project_id}/users": {"user_id": "USER", "role": "member"},
    "GET /v1/organization/projects/{project_id}/users/{user_id}": None,
    "POST /v1/organization/projects/{project_id}/users/{user_id}": {"role": "owner"},
    "DELETE /v1/organization/projects/{project_id}/users/{user_id}": None,
    "GET /v1/organization/projects/{project_id}/rate_limits": None,
    "POST /v1/organization/projects/{project_id}/rate_limits/{rate_limit_id}": {
        "max_requests_per_1_minute": 0
    },
    "GET /v1/organization/projects/{project_id}/spend_limit": None,
    "POST /v1/organization/projects/{project_id}/spend_limit": BUDGET,
    "DELETE /v1/organization/projects/{project_id}/spend_limit": None,
    "GET /v1/organization/users/{user_id}": None,
    "POST /v1/organization/users/{user_id}": {"role": "owner"},
    "DELETE /v1/organization/users/{user_id}": None,
    "GET /v1/organization/admin_api_keys/{key_id}": None,
    "DELETE /v1/organization/admin_api_keys/{key_id}": None,
    "DELETE /v1/organization/webhooks/{webhook_id}": None,
    "GET /v1/models/{model}": None,
    "DELETE /v1/models/{model}": None,
    "GET /v1/adapters/{model}": None,
    "GET /v1/adapters/{model}/files/{name}": None,
    "GET /v1/files/{file_id}": None,
    "GET /v1/files/{file_id}/content": None,
    "POST /v1/uploads/{upload_id}/parts": FORM,
    "POST /v1/uploads/{upload_id}/complete": {"part_ids": ["PART"]},
    "POST /v1/uploads/{upload_id}/cancel": None,
    "DELETE /v1/files/{file_id}": None,
    "GET /v1/fine_tuning/jobs/{job_id}": None,
    "GET /v1/fine_tuning/jobs/{job_id}/events": None,
    "GET /v1/fine_tuning/jobs/{job_id}/checkpoints": None,
    "POST /v1/fine_tuning/jobs/{job_id}/pause": None,
    "POST /v1/fine_tuning/jobs/{job_id}/resume": None,
    "POST /v1/fine_tuning/jobs/{job_id}/cancel": None,
    "GET /v1/exports/{export_id}": None,
    "GET /v1/exports/{export_id}/events": None,
    "POST /v1/exports/{export_id}/cancel": None,
    "GET /v1/bundles/{bundle_id}": None,
    "GET /v1/bundles/{bundle_id}/content": None,
    "DELETE /v1/bundles/{bundle_id}": None,
    "GET /v1/devices/{device_id}": None,
    "POST /v1/devices/{device_id}": {"name": "renamed"},
    "DELETE /v1/devices/{device_id}": None,
    "GET /v1/devices/{device_id}/events": None,
    "DELETE /v1/devices/enrolment_codes/{code_id}": None,
    "GET /v1/devices/groups/{group_name}": None,
    "POST /v1/devices/groups/{group_name}": {"heartbeat_s": 30},
    "DELETE /v1/devices/groups/{group_name}": None,
    "GET /v1/devices/channels/{channel_name}": None,
    # A channel is made by its name; the bundle is what is somebody's.
    "POST /v1/devices/channels/{channel_name}": {"bundle_id": "BUNDLE"},
    "DELETE /v1/devices/channels/{channel_name}": None,
    "GET /v1/devices/rollouts/{rollout_id}": None,
    "POST /v1/devices/rollouts/{rollout_id}/pause": None,
    "POST /v1/devices/rollouts/{rollout_id}/resume": None,
    "POST /v1/devices/rollouts/{rollout_id}/cancel": None,
}
# Routes about all that the caller's organisation has: nothing of another's may be in the answer.
PERIOD = "start_time=0&limit=1"
LISTS = {
    "GET /v1/organization/projects",
    "GET /v1/organization/users",
    "GET /v1/organization/admin_api_keys",
    "GET /v1/organization/audit_logs",
    "GET /v1/organization/audit_logs/export",
    "GET /v1/organization/rate_limits",
    "GET /v1/organization/spend_limit",
    "GET /v1/organization/usage/{kind}",
    "GET /v1/organization/costs",
    "GET /v1/organization/webhooks",
    "GET /v1/models",
    "GET /v1/adapters",
    "GET /v1/files",
    "GET /v1/fine_tuning/jobs",
    "GET /v1/exports",
    "GET /v1/bundles",
    "GET /v1/devices",
    "GET /v1/devices/enrolment_codes",
    "GET /v1/devices/groups",
    "GET /v1/devices/channels",
    "GET /v1/devices/rollouts",
    "GET /v1/devices/summary",
}
# Routes without anybody's things in them: they act on the caller's own organisation.
SHARED = {
    "GET /healthz",
    "GET /readyz",
    "GET /v1/organization/audit_logs/verify",
    "POST /v1/organization/projects",
    "POST /v1/organization/users",
    "POST /v1/organization/admin_api_keys",
    "POST /v1/organization/webhooks",
    "POST /v1/organization/rate_limits/{rate_limit_id}",
    "POST /v1/organization/spend_limit",
    "DELETE /v1/organization/spend_limit",
    "POST /v1/files",
    "POST /v1/adapters",
    "POST /v1/uploads",
    "GET /v1/fine_tuning/recipes",
    "GET /v1/bundles/signing_key",
    "POST /v1/fine_tuning/jobs",
    "POST /v1/exports",
    "POST /v1/devices/enrolment_codes",
    "POST /v1/devices/groups",
    "POST /v1/devices/rollouts",
    "POST /v1/devices/enrol",
    "POST /v1/devices/heartbeat",
    "POST /v1/chat/completions",
    "POST /v1/completions",
    "POST /v1/embeddings",
    "POST /v1/responses",
}


@dataclass
class Tenant:
    """An organisation with one of everything."""

    organization_id: str
    ids: dict[str, str]
    admin_key_id: str
    keys: dict[str, str]

    def path(self, route: str, *, project_id: str | None = None) -> str:
        ids = {**self.ids, "project_id": project_id or self.ids["project_id"]}
        if "/admin_api_keys/" in route:
            ids["key_id"] = self.admin_key_id
        if "/uploads/" in route:
            # One for each: what is over cannot be cancelled, and takes no parts.
            ids["upload_id"] = ids[f"upload_to_{route.rpartition('/')[2]}"]
        if "/rollouts/" in route:
            # One for each: only one that runs or stands can be moved.
            ids["rollout_id"] = ids[f"rollout_to_{route.rpartition('/')[2].strip('{}')}"]
        if "/jobs/" in route:
            # One for each: only a paused one can be resumed, and none that is over.
            ids["job_id"] = ids.get(f"job_to_{route.rpartition('/')[2]}", ids["job_id"])
        return route.partition(" ")[2].format(**ids)


def tenant(gateway: RunningGateway, name: str) -> Tenant:
    tenancy = gateway.store.tenancy
    organization = tenancy.organizations.create(name)
    first = tenancy.projects.default_of(organization.id)
    project = tenancy.projects.create(organization.id, f"{name}-project")
    user = tenancy.users.create(
        organization.id, email=f"owner@{name}.example", name=name, role=Role.OWNER
    )
    tenancy.users.add_member(project.id, user.id, Role.OWNER)
    account = tenancy.service_accounts.create(project.id, name=f"{name}-bot", role=Role.OWNER)
    admin, admin_value = tenancy.keys.create(
        project_id=first.id, name=f"{name}-admin", scopes=(ORGANIZATION_SCOPE,)
    )
    key, value = tenancy.keys.create(project_id=project.id, name=f"{name}-key")
    _, user_value = tenancy.keys.create(
        project_id=project.id, name=f"{name}-user", terms=KeyTerms(user_id=user.id)
    )
    _, account_value = tenancy.keys.create(
        project_id=project.id, name=f"{name}-bot", terms=KeyTerms(service_account_id=account.id)
    )
    for scope, scope_id in (
        (LimitScope.ORGANIZATION, organization.id),
        (LimitScope.PROJECT, project.id),
        (LimitScope.KEY, key.id),
    ):
        tenancy.limits.set(LimitKey(scope, scope_id, f"{name}-model"), requests_per_minute=7)
        tenancy.limits.set(LimitKey(scope, scope_id), monthly_budget=7)
    webhook, _ = WebhookRepository(tenancy.database, tenancy.clock, str).create(
        organization.id, name=f"{name}-hook", url=f"https://{name}.example/hook"
    )
    held = _file_and_uploads(gateway, first.id, name)
    ids = {
        **held,
        **_jobs(gateway, first.id, held["file_id"], name),
        **_export(gateway, first.id, name),
        **_fleet(gateway, first.id, name),
        "project_id": project.id,
        "key_id": key.id,
        "account_id": account.id,
        "user_id": user.id,
        "rate_limit_id": f"rl-{name}-model",
        "webhook_id": webhook.id,
        "kind": "completions",
        **_adapter(gateway, project.id),
    }
    values = {
        "admin": admin_value,
        "plain": value,
        "user": user_value,
        "service account": account_value,
    }
    return Tenant(organization.id, ids, admin.id, values)


def _file_and_uploads(gateway: RunningGateway, project_id: str, name: str) -> dict[str, str]:
    store, blobs = gateway.store, open_blobs(Settings(home=gateway.home))
    files = FileRepository(store.database, store.clock)
    uploads = UploadRepository(store.database, store.clock)
    ids = {"file_id": new_file_id()}
    for action in ("parts", "complete", "cancel"):
        ids[f"upload_to_{action}"] = uploads.create(
            project_id,
            filename=f"{name}.jsonl",
            purpose="fine-tune",
            mime_type="text/jsonl",
            size_bytes=len(FORM["form"]),
            file_lifetime_s=None,
        ).id
    ids["upload_id"], ids["part_id"] = ids["upload_to_parts"], new_id("part")
    facts = blobs.put_file(blob_key_of(ids["file_id"]), Path(pytest.__file__))
    incoming = blobs.begin()
    incoming.write(FORM["form"].encode())
    part = blobs.put(f"uploads/{ids['upload_to_complete']}/{ids['part_id']}", incoming)
    uploads.add_part(
        project_id,
        UploadPart(
            ids["part_id"], ids["upload_to_complete"], part.size_bytes, part.sha256, part.key, 0.0
        ),
    )
    files.create(
        NewFile(
            id=ids["file_id"],
            project_id=project_id,
            filename=f"{name}.jsonl",
            purpose="fine-tune",
            size_bytes=facts.size_bytes,
            sha256=facts.sha256,
        )
    )
    return ids


def _adapter(gateway: RunningGateway, project_id: str) -> dict[str, str]:
    model = tuned_model(gateway.store, project_id)
    blobs = open_blobs(Settings(home=gateway.home))
    blobs.put_file(f"adapters/{model.adapter_id}/{CONFIG_NAME}", Path(pytest.__file__))
    return {"model": model.id, "name": CONFIG_NAME}


def _jobs(gateway: RunningGateway, project_id: str, file_id: str, name: str) -> dict[str, str]:
    jobs, ids = gateway.store.jobs, {}
    for action in ("pause", "resume", "cancel"):
        new = NewJob(
            project_id=project_id,
            key_id=f"{name}-key",
            request_id=f"{name}-request",
            model_id=BASE,
            base_model_id=BASE,
            training_file=file_id,
            method={"type": "supervised"},
            recipe="lora",
            seed=1,
            suffix=name,
        )
        ids[f"job_to_{action}"] = jobs.create(new).id
    jobs.pause(project_id, ids["job_to_resume"])
    return {**ids, "job_id": ids["job_to_pause"]}


def _export(gateway: RunningGateway, project_id: str, name: str) -> dict[str, str]:
    exports = ExportRepository(gateway.store.database, gateway.store.clock)
    new = NewExport(
        project_id, f"{name}-key", "r", BASE, BASE, name=name, target="cpu", precision="int4"
    )
    made, waiting = exports.create(new), exports.create(new)
    exports.take(made.id, seen_attempt=0)
    blob = open_blobs(Settings(home=gateway.home)).put_file(
        f"bundles/{name}", Path(pytest.__file__)
    )
    bundle_id = hashlib.sha256(made.id.encode()).hexdigest()
    exports.succeed(
        made.id, 1, MadeBundle(bundle_id, name, blob.key, blob.size_bytes, {"name": name})
    )
    return {"export_id": waiting.id, "bundle_id": bundle_id}


def _fleet(gateway: RunningGateway, project_id: str, name: str) -> dict[str, str]:
    store = gateway.store
    fleet = fleet_of(Settings(home=gateway.home), store)
    # Names without the tenant's, which refusals repeat.
    group, channel = new_id("group"), new_id("channel")
    fleet.groups.create(project_id, NewGroup(group, channel=channel), {"of": name})
    code, secret = fleet.enrolment.create(
        project_id, group="default", name=f"{name}-device", lifetime_s=3600.0, labels={}
    )
    device = fleet.enrolment.enrol(Applicant(secret, "n" * 32))
    bundle_id = made_bundle(store, project_id, gateway.home, f"{name}-bundle")
    ids = {"group_name": group, "channel_name": channel, "device_id": device.device_id}
    for action in ("rollout_id", "pause", "resume", "cancel"):
        stages = (Stage(100, 3600.0),)
        new = NewRollout(new_id(action), bundle_id, stages, max_failure_percent=5.0, min_reports=1)
        ids[f"rollout_to_{action}"] = fleet.rollouts.create(project_id, new).id
    return {**ids, "code_id": code.id}


@pytest.fixture(scope="module")
def tenants(gateway: RunningGateway) -> tuple[Tenant, Tenant]:
    pair = tenant(gateway, "ours"), tenant(gateway, "theirs")
    gateway.wait_seen()
    return pair


def ask(  # what is theirs, by the words that stand for it in a body
    gateway: RunningGateway, route: str, path: str, key: str, **theirs: str
) -> Response:
    body = OWNED.get(route)
    if body is not None:
        words = {name.upper(): value for name, value in theirs.items()}
        body = {name: words.get(str(value), value) for name, value in body.items()}
    with Client(base_url=gateway.url, timeout=10) as client:
        return client.request(
            route.partition(" ")[0],
            path,
            headers={"Authorization": f"Bearer {key}"},
            **content_of(body),
        )


def content_of(body: dict[str, Any] | None) -> dict[str, Any]:
    """Return a body as the client takes it."""
    return {"files": {"data": body["form"]}} if body and "form" in body else {"json": body}


def test_every_route_is_in_one_of_the_tables(gateway: RunningGateway) -> None:
    document = gateway.client.get("/openapi.json").json()
    routes = {
        f"{method.upper()} {path}"
        for path, methods in document["paths"].items()
        for method in methods
    }
    assert routes == {*OWNED, *LISTS, *SHARED}


BLIND = {"plain", "service account"}


@pytest.mark.parametrize("kind", ["admin", "plain", "user", "service account"])
@pytest.mark.parametrize("route", OWNED)
def test_what_is_theirs_is_a_404(gateway, tenants, route, kind):
    ours, theirs = tenants
    theirs_by_word = {"user": theirs.ids["user_id"], "bundle": theirs.ids["bundle_id"]}
    answer = ask(gateway, route, theirs.path(route), ours.keys[kind], **theirs_by_word)
    # A key without any permission outside its project is refused before anything is looked up;
    # one that only asks models has none for devices.
    is_blind = "/organization/" in route and "{project_id}" not in route and kind in BLIND
    is_blind |= "/devices/" in route and kind == "plain"
    assert answer.status_code == (403 if is_blind else 404), answer.text
    assert "theirs" not in answer.text.replace(theirs.ids["rate_limit_id"], "")


# A rate limit of a project is named by its model, so that one is always ours.
BELOW = [r for r in OWNED if r.count("{") > 1 and "project_id}/rate_limits/" not in r]


@pytest.mark.parametrize("route", BELOW)
def test_what_is_theirs_is_a_404_under_our_own_project(gateway, tenants, route):
    ours, theirs = tenants
    path = theirs.path(route, project_id=ours.ids["project_id"])
    assert ask(gateway, route, path, ours.keys["admin"]).status_code == 404


def test_their_user_cannot_be_put_into_our_project(gateway, tenants):
    ours, theirs = tenants
    route = "POST /v1/organization/projects/{project_id}/users"
    answer = ask(gateway, route, ours.path(route), ours.keys["admin"], user=theirs.ids["user_id"])
    assert answer.status_code == 404


@pytest.mark.parametrize("kind", ["admin", "user"])
@pytest.mark.parametrize("route", sorted(LISTS))
def test_lists_hold_nothing_of_theirs(gateway, tenants, route, kind):
    ours, theirs = tenants
    query = PERIOD if route.endswith(("{kind}", "/costs")) else "limit=100"
    answer = ask(gateway, route, f"{ours.path(route)}?{query}", ours.keys[kind])
    assert answer.status_code == 200, answer.text
    hidden = {theirs.organization_id, theirs.admin_key_id, *theirs.ids.values()}
    for theirs_id in hidden - set(ours.ids.values()):
        assert theirs_id not in answer.text
    assert "theirs" not in answer.text


def test_naming_their_organisation_in_the_header_opens_nothing(gateway, tenants):
    ours, theirs = tenants
    for header in (theirs.organization_id, "theirs"):
        answer = gateway.client.get(
            "/v1/organization/projects",
            headers={
                "Authorization": f"Bearer {ours.keys['admin']}",
                "OpenAI-Organization": header,
            },
        )
        assert answer.status_code == 404


def test_what_is_ours_is_found_with_our_key(gateway, tenants):
    ours, _ = tenants
    for route in OWNED:
        if route.startswith("GET"):
            # A tuned model is its project's alone.
            kind = "user" if "/models/" in route or "/adapters/" in route else "admin"
            answer = ask(gateway, route, ours.path(route), ours.keys[kind])
            assert answer.status_code == 200, (route, answer.text)


def test_operator_sees_every_organisation_that_it_names(gateway, tenants):
    _, theirs = tenants
    _, key = gateway.store.keys.create(
        project_id=gateway.project_id, name="operator", scopes=("inference", ADMIN_SCOPE)
    )
    gateway.wait_seen()
    headers = {"Authorization": f"Bearer {key}"}
    own = gateway.client.get("/v1/organization/projects", headers=headers).json()
    assert theirs.ids["project_id"] not in {item["id"] for item in own["data"]}
    named = {**headers, "OpenAI-Organization": "theirs"}
    listed = gateway.client.get("/v1/organization/projects", headers=named).json()
    assert theirs.ids["project_id"] in {item["id"] for item in listed["data"]}
    path = f"/v1/organization/projects/{theirs.ids['project_id']}/api_keys"
    assert gateway.client.get(path, headers=headers).status_code == 200
