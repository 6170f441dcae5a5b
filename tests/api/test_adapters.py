"""Adapters that were tuned elsewhere: two uploaded files become a tuned model."""

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from openai import OpenAI

from maas.finetune.adapter_files import CONFIG_NAME, WEIGHTS_NAME
from maas.finetune.registry import AdapterRegistry
from maas.store.adapters import TunedState
from maas.store.key_terms import KeyTerms
from maas.store.records import Role
from tests.api.tenant import Tenant
from tests.fakes.adapters import CONFIG, safetensors_of, tensors_of, tuned_model

BASE = "smollm2-135m-instruct"


@pytest.fixture
def owner(gateway, tenant: Tenant):
    """An SDK client that may upload files and make models."""
    with OpenAI(base_url=f"{gateway.url}/v1", api_key=tenant.key, max_retries=0) as client:
        yield client


def upload(owner: OpenAI, name: str, content: bytes, purpose: str = "adapter") -> str:
    return owner.files.create(file=(name, content), purpose=purpose).id  # type: ignore[arg-type]


def bring(owner: OpenAI, *, config=CONFIG, weights=None, key: str | None = None, **fields):
    body = {
        "model": BASE,
        "config_file": upload(owner, CONFIG_NAME, json.dumps(config).encode()),
        "weights_file": upload(owner, WEIGHTS_NAME, weights or safetensors_of(tensors_of())),
        **fields,
    }
    headers = {"Authorization": f"Bearer {owner.api_key}"}
    headers |= {"Idempotency-Key": key} if key else {}
    return owner._client.post("/adapters", json=body, headers=headers)


def test_uploaded_files_become_a_model_with_lineage_and_the_bases_licence(gateway, owner, tenant):
    answer = bring(owner, suffix="mine")
    assert answer.status_code == 200, answer.text
    made = answer.json()
    assert made["id"].startswith(f"ft:{BASE}:default:mine:")
    assert (made["status"], made["r"], made["object"]) == ("loading", 4, "adapter")
    assert made["lineage"]["source"] == "upload"
    assert set(made["lineage"]["files"]) == {CONFIG_NAME, WEIGHTS_NAME}
    assert made["licence"]["name"] == "Apache-2.0"
    assert tenant.ask(model=made["id"]).status_code == 404
    gateway.store.tuned_models.publish_loaded(made["adapter_sha256"], loaded_by="r")
    gateway.wait_seen()
    assert tenant.ask(model=made["id"]).status_code == 503
    headers = {"Authorization": f"Bearer {owner.api_key}"}
    seen = owner._client.get(f"/adapters/{made['id']}", headers=headers).json()
    assert seen["status"] == "ready"
    listed = owner._client.get("/adapters", headers=headers).json()["data"]
    assert [item["id"] for item in listed] == [made["id"]]


def test_adapter_leaves_as_it_came_unless_its_bases_licence_forbids_it(gateway, owner, tenant):
    weights = safetensors_of(tensors_of())
    made = bring(owner, weights=weights).json()
    headers = {"Authorization": f"Bearer {owner.api_key}"}

    def fetch(name: str, of: str = WEIGHTS_NAME):
        return owner._client.get(f"/adapters/{name}/files/{of}", headers=headers)

    assert fetch(made["id"]).content == weights
    assert json.loads(fetch(made["id"], CONFIG_NAME).content)["r"] == CONFIG["r"]
    assert fetch(made["id"], "..%2F..%2Fadmin.key").status_code == 404
    bound = tuned_model(gateway.store, tenant.project.id, base=BASE)
    forbidding = {"name": "Own-1", "allows_export": False}
    strict = replace(bound, id=f"{bound.id}-strict", licence=forbidding)
    gateway.store.tuned_models.add(strict)
    refused = fetch(strict.id)
    assert (refused.status_code, "Own-1" in refused.text) == (403, True)


def test_same_content_twice_is_one_adapter_under_two_names(owner):
    first, second = (bring(owner).json() for _ in range(2))
    assert first["adapter_sha256"] == second["adapter_sha256"]
    assert first["id"] != second["id"]


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        ({"config": {**CONFIG, "use_dora": True}}, 400, "DoRA"),
        ({"config": {**CONFIG, "auto_map": {"a": "b"}}}, 400, "code"),
        ({"weights": b"\x80\x04pickle-ish-bytes"}, 400, "header"),
        ({"suffix": "a:b"}, 400, "suffix"),
        ({"suffix": ""}, 400, "suffix"),
        ({"model": "nobody"}, 404, "takes adapters"),
        ({"config_file": "file-nobody"}, 404, "file-nobody"),
        ({"extra": 1}, 400, "extra"),
    ],
)
def test_what_cannot_be_served_is_refused_and_leaves_nothing(
    gateway, owner, tenant, change, status, words
):
    answer = bring(owner, **change)
    assert (answer.status_code, words in answer.text) == (status, True), answer.text
    assert gateway.store.tuned_models.list(tenant.project.id) == ()


def test_file_of_another_purpose_or_project_is_refused(gateway, owner, tenant):
    wrong = upload(owner, CONFIG_NAME, json.dumps(CONFIG).encode(), purpose="user_data")
    assert "purpose" in bring(owner, config_file=wrong).json()["error"]["message"]


def test_key_that_may_not_tune_brings_nothing(gateway, tenant):
    accounts = gateway.store.tenancy.service_accounts
    account = accounts.create(tenant.project.id, name="viewer", role=Role.VIEWER)
    terms = KeyTerms(service_account_id=account.id)
    _, key = gateway.store.keys.create(project_id=tenant.project.id, name="v", terms=terms)
    gateway.wait_seen()
    answer = tenant.client.post(
        "/v1/adapters",
        json={"model": BASE, "config_file": "a", "weights_file": "b"},
        headers={"Authorization": f"Bearer {key}"},
    )
    assert answer.status_code == 403


def test_problem_of_an_adapter_is_shown(gateway, owner):
    made = bring(owner).json()
    gateway.store.adapters.note_problem(made["adapter_sha256"], "the engine refused it")
    headers = {"Authorization": f"Bearer {owner.api_key}"}
    seen = owner._client.get(f"/adapters/{made['id']}", headers=headers).json()
    assert (seen["status"], seen["problem"]) == ("loading", "the engine refused it")
    assert gateway.store.tuned_models.find(made["id"]).state is TunedState.CANDIDATE
    assert time.time() - seen["created_at"] < 60


def test_nobody_waits_while_an_adapter_is_checked(gateway, owner, monkeypatch):
    """Not for the turn of changes, nor for the transaction of an Idempotency-Key."""
    has_begun, may_end = threading.Event(), threading.Event()
    take = AdapterRegistry.take

    def slow(*args, **kwargs):
        has_begun.set()
        assert may_end.wait(10)
        return take(*args, **kwargs)

    monkeypatch.setattr(AdapterRegistry, "take", slow)
    with ThreadPoolExecutor(1) as threads:
        brought = threads.submit(bring, owner, key="once")
        assert has_begun.wait(10)
        began = time.monotonic()
        upload(owner, "another", b"x")
        waited_s = time.monotonic() - began
        may_end.set()
        assert brought.result().status_code == 200
    assert waited_s < 2.0


def test_repeated_request_is_answered_again_when_its_files_are_gone(gateway, owner, tenant):
    body = {
        "model": BASE,
        "config_file": upload(owner, CONFIG_NAME, json.dumps(CONFIG).encode()),
        "weights_file": upload(owner, WEIGHTS_NAME, safetensors_of(tensors_of())),
    }
    headers = {"Authorization": f"Bearer {owner.api_key}", "Idempotency-Key": "again"}
    first = owner._client.post("/adapters", json=body, headers=headers)
    owner.files.delete(body["weights_file"])
    again = owner._client.post("/adapters", json=body, headers=headers)
    assert (first.status_code, again.json()) == (200, first.json())
    assert len(gateway.store.tuned_models.list(tenant.project.id)) == 1
    other = owner._client.post("/adapters", json=body, headers={**headers, "Idempotency-Key": "b"})
    assert other.status_code == 404
