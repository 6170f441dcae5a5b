"""Tuned models under their own names, in front of a fake engine that holds their adapters."""

import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
from openai import NotFoundError, OpenAI, PermissionDeniedError

from maas.core.ids import new_id
from maas.ledger.prices import Rates
from maas.ledger.tariff import Tariff
from maas.store.adapters import TunedModel, TunedState
from maas.store.key_terms import KeyTerms
from maas.store.limits import LimitKey
from maas.store.records import LimitScope, Role
from tests.api.tenant import COST, PRICE, Tenant, new_tenant
from tests.fakes.adapters import adapter_name, tuned_model, whole_model
from tests.fakes.engine import fake_engine


def hold(gateway, *models: TunedModel) -> None:
    """Let the engine of ``tiny`` hold these adapters, and no others."""
    for replica in gateway.store.replicas.live():
        names = tuple(adapter_name(model) for model in models)
        gateway.store.replicas.publish(replace(replica, adapters=names))
    gateway.wait_seen()


@pytest.fixture
def tuned(gateway, tenant: Tenant) -> TunedModel:
    model = tuned_model(gateway.store, tenant.project.id)
    hold(gateway, model)
    return model


@pytest.fixture
def sdk(gateway, tenant: Tenant) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{gateway.url}/v1", api_key=tenant.key, max_retries=0) as client:
        yield client


def key_of(gateway, tenant: Tenant, role: Role) -> str:
    """Return a key of a program in the project."""
    accounts = gateway.store.tenancy.service_accounts
    account = accounts.create(tenant.project.id, name=new_id("bot"), role=role)
    terms = KeyTerms(service_account_id=account.id)
    _, key = gateway.store.keys.create(project_id=tenant.project.id, name="t", terms=terms)
    gateway.wait_seen()
    return key


def test_engine_is_asked_for_the_adapter_and_the_answer_has_the_public_name(
    engine, tuned, sdk, tenant
):
    ask = {"model": tuned.id, "messages": [{"role": "user", "content": "hello"}]}
    assert sdk.chat.completions.create(**ask).model == tuned.id
    chunks = list(sdk.chat.completions.create(**ask, stream=True))
    assert {chunk.model for chunk in chunks} == {tuned.id}
    assert sdk.completions.create(model=tuned.id, prompt="hello").model == tuned.id
    assert sdk.responses.create(model=tuned.id, input="hello").model == tuned.id
    assert {body["model"] for body in engine.requests} == {adapter_name(tuned)}
    assert {row.model_id for row in tenant.charges(4)} == {tuned.id}


def test_base_beside_it_is_still_the_base(engine, tuned, sdk):
    assert sdk.completions.create(model="tiny", prompt="hello").model == "tiny"
    assert engine.requests[-1]["model"] == "tiny"


def test_it_costs_what_its_base_costs_until_it_has_a_price(gateway, tuned, tenant):
    assert tenant.ask(model=tuned.id).status_code == 200
    assert [row.amount for row in tenant.charges(1)] == [COST]
    tariff = Tariff(gateway.store.database, gateway.store.clock)
    tariff.override(
        tuned.id, Rates(PRICE * 2, PRICE * 2, PRICE * 2), tier="default", currency="USD"
    )
    gateway.wait_seen()
    assert tenant.ask(model=tuned.id).status_code == 200
    assert [row.amount for row in tenant.charges(2)] == [COST, 2 * COST]


def test_limits_of_its_base_hold_for_it(gateway, tuned, tenant):
    limits = gateway.store.tenancy.limits
    limits.set(LimitKey(LimitScope.PROJECT, tenant.project.id, "tiny"), tokens_per_day=13)
    gateway.wait_seen()
    assert tenant.ask(model=tuned.id).status_code == 200
    # Also once it is in the journal: what the gateway held of the limit is gone then.
    tenant.charges(1)
    assert tenant.ask(model="tiny").status_code == 429
    assert tenant.ask(model=tuned.id).status_code == 429


def test_others_get_the_same_404_as_for_a_name_that_nobody_has(gateway, tuned, tenant):
    unknown = tuned.id[:-1] + "_"
    with new_tenant(gateway) as other:
        answers = {name: other.ask(model=name) for name in (tuned.id, unknown)}
        assert {answer.status_code for answer in answers.values()} == {404}
        texts = {answer.text.replace(name, "NAME") for name, answer in answers.items()}
        assert len(texts) == 1
        for method in ("GET", "DELETE"):
            both = [
                other.client.request(method, f"/v1/models/{name}") for name in (tuned.id, unknown)
            ]
            assert [answer.status_code for answer in both] == [404, 404]
        assert tuned.id not in other.client.get("/v1/models").text
        assert tuned.id not in other.client.get("/readyz").text
    assert tenant.ask(model=tuned.id).status_code == 200


def test_models_lists_it_with_its_base_as_root_and_parent(tuned, sdk):
    listed = {model.id: model for model in sdk.models.list()}
    assert listed[tuned.id].model_extra == {"root": "tiny", "parent": "tiny"}
    assert listed[tuned.id].owned_by == "default"
    assert sdk.models.retrieve(tuned.id) == listed[tuned.id]


def test_what_no_engine_holds_yet_is_a_503_that_says_when_to_come_back(gateway, tuned, tenant):
    hold(gateway)
    answer = tenant.ask(model=tuned.id)
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) >= 1
    assert "no engine holds it yet" in answer.text
    hold(gateway, tuned)
    assert tenant.ask(model=tuned.id).status_code == 200


@pytest.mark.parametrize("state", [TunedState.CANDIDATE, TunedState.REFUSED])
def test_what_is_not_published_does_not_exist(gateway, tenant, engine, state):
    model = tuned_model(gateway.store, tenant.project.id, state=state)
    hold(gateway, model)
    assert tenant.ask(model=model.id).status_code == 404


def test_published_model_answers_within_half_a_second(gateway, tenant, engine):
    model = tuned_model(gateway.store, tenant.project.id, state=TunedState.CANDIDATE)
    hold(gateway, model)
    started = time.monotonic()
    gateway.store.tuned_models.judge(model.id, state=TunedState.PUBLISHED, receipt={})
    while tenant.ask(model=model.id).status_code != 200:
        assert time.monotonic() - started < 0.5
        time.sleep(0.01)


def test_deleted_name_is_gone_at_once_and_never_given_again(gateway, tuned, tenant, sdk):
    with OpenAI(base_url=f"{gateway.url}/v1", api_key=tenant.key) as owner:
        deleted = owner.models.delete(tuned.id)
    assert (deleted.id, deleted.deleted, deleted.object) == (tuned.id, True, "model")
    with pytest.raises(NotFoundError):
        sdk.completions.create(model=tuned.id, prompt="hello")
    with pytest.raises(NotFoundError):
        sdk.models.retrieve(tuned.id)
    wanted = {adapter.engine_name for adapter in gateway.store.adapters.wanted("tiny")}
    assert adapter_name(tuned) not in wanted
    again = gateway.store.tuned_models.add(replace(tuned, deleted_at=None))
    assert again.deleted_at is not None


def test_key_that_may_not_tune_and_names_that_are_not_tuned_delete_nothing(
    gateway, tuned, tenant, sdk
):
    key = key_of(gateway, tenant, Role.VIEWER)
    with (
        OpenAI(base_url=f"{gateway.url}/v1", api_key=key, max_retries=0) as viewer,
        pytest.raises(PermissionDeniedError, match="jobs"),
    ):
        viewer.models.delete(tuned.id)
    with pytest.raises(PermissionDeniedError, match="not a tuned one"):
        sdk.models.delete("tiny")
    with pytest.raises(NotFoundError):
        sdk.models.delete("ft:tiny:nobody::x")
    assert tenant.ask(model=tuned.id).status_code == 200
    assert tenant.ask(model="tiny").status_code == 200


def test_alias_of_a_tuned_model_is_its_owners_too(gateway, engine, tuned, tenant):
    gateway.store.aliases.point("support-bot", tuned.id)
    gateway.wait_seen()
    answer = tenant.ask(model="support-bot")
    assert answer.json()["model"] == "support-bot"
    assert engine.requests[-1]["model"] == adapter_name(tuned)
    assert tenant.charges(1)[0].model_id == tuned.id
    assert tenant.client.get("/v1/models/support-bot").json()["root"] == tuned.id
    with new_tenant(gateway) as other:
        assert other.ask(model="support-bot").status_code == 404
    gateway.store.aliases.remove("support-bot")


def test_key_for_one_tuned_model_is_for_nothing_else(gateway, tuned, tenant):
    other = tuned_model(gateway.store, tenant.project.id)
    hold(gateway, tuned, other)
    _, key = gateway.store.keys.create(
        project_id=tenant.project.id, name="one", terms=KeyTerms(models=(tuned.id,))
    )
    gateway.wait_seen()
    with OpenAI(base_url=f"{gateway.url}/v1", api_key=key, max_retries=0) as client:
        assert [model.id for model in client.models.list()] == [tuned.id]
        assert client.completions.create(model=tuned.id, prompt="hello").model == tuned.id
        for name in (other.id, "tiny"):
            with pytest.raises(PermissionDeniedError):
                client.completions.create(model=name, prompt="hello")


def test_only_replicas_that_hold_it_are_asked(gateway, engine, tuned, tenant):
    (replica,) = [r for r in gateway.store.replicas.live() if r.adapters]
    bare = replace(replica, id=f"{replica.id}-bare", url="http://127.0.0.1:9", adapters=())
    gateway.store.replicas.publish(bare)
    gateway.wait_seen()
    assert {tenant.ask(model=tuned.id, prompt=[i]).status_code for i in range(8)} == {200}
    gateway.store.replicas.withdraw(bare.id)


def test_two_names_of_the_same_content_share_an_adapter(gateway, engine, tenant):
    first, second = (
        tuned_model(gateway.store, tenant.project.id, content="same") for _ in range(2)
    )
    assert adapter_name(first) == adapter_name(second)
    gateway.store.tuned_models.delete(tenant.project.id, first.id)
    names = [adapter.engine_name for adapter in gateway.store.adapters.wanted("tiny")]
    assert names.count(adapter_name(second)) == 1
    gateway.store.tuned_models.delete(tenant.project.id, second.id)


@pytest.fixture
def whole(gateway, tenant: Tenant, engine):
    """A model that was tuned whole, and the engine of its own."""
    model = whole_model(gateway.store, tenant.project.id, state=TunedState.CANDIDATE)
    weights = str(model.weights_key).rpartition("/")[2]
    with fake_engine() as own:
        own.model = "weights-1"
        gateway.deploy(own, model=model.id, base_model="tiny", weights=weights)
        yield model, own


def test_whole_model_answers_from_its_own_engine_for_its_project_alone(
    gateway, whole, engine, tenant, sdk
):
    model, own = whole
    # Its engine runs so that it can be measured; nobody may ask it.
    assert tenant.ask(model=model.id).status_code == 404
    gateway.store.tuned_models.judge(model.id, state=TunedState.PUBLISHED, receipt={})
    gateway.wait_seen()
    assert sdk.completions.create(model=model.id, prompt="hello").model == model.id
    assert [body["model"] for body in own.requests] == ["weights-1"]
    assert engine.requests == []
    assert sdk.completions.create(model="tiny", prompt="hello").model == "tiny"
    assert len(own.requests) == 1
    listed = sdk.models.retrieve(model.id)
    assert listed.model_extra == {"root": "tiny", "parent": "tiny"}
    assert {row.model_id for row in tenant.charges(2)} == {model.id, "tiny"}
    with new_tenant(gateway) as other:
        assert other.ask(model=model.id).status_code == 404
        for path in ("/v1/models", "/readyz"):
            assert model.id not in other.client.get(path).text


def test_whole_model_is_gone_once_it_is_deleted_and_its_engine_is_to_stop(gateway, whole, sdk):
    model, _ = whole
    gateway.store.tuned_models.judge(model.id, state=TunedState.PUBLISHED, receipt={})
    gateway.wait_seen()
    deployment = next(d for d in gateway.store.deployments.list() if d.model_id == model.id)
    assert sdk.models.delete(model.id).deleted
    with pytest.raises(NotFoundError):
        sdk.completions.create(model=model.id, prompt="hello")
    assert gateway.store.deployments.get(deployment.id).deleted_at is not None


def test_whole_model_without_an_engine_is_a_503(gateway, tenant, engine):
    model = whole_model(gateway.store, tenant.project.id)
    gateway.wait_seen()
    answer = tenant.ask(model=model.id)
    assert (answer.status_code, "no replica is ready" in answer.text) == (503, True)
