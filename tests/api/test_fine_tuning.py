"""Fine-tuning jobs as OpenAI's own client makes, follows and ends them; nothing trains here."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from decimal import Decimal
from itertools import product

import openai
import pytest
from openai import OpenAI
from sqlalchemy import select

from maas.catalog.machine import Gpu, Machine
from maas.core.ids import new_id
from maas.core.settings import Settings
from maas.finetune.charges import TrainingLedger
from maas.ledger.books import Books
from maas.ledger.prices import Rates
from maas.ledger.tariff import Tariff
from maas.store.adapters import TunedState
from maas.store.finetune_tables import JobRow
from maas.store.job_records import Job, JobChange, JobStatus, Telling
from maas.store.key_terms import KeyTerms
from maas.store.ledger_tables import CounterRow, GrantRow, JournalRow
from maas.store.limits import LimitKey
from maas.store.records import LimitScope, Role
from maas.store.webhook_tables import DeliveryRow
from maas.store.webhooks import WebhookRepository
from tests.fakes.adapters import tuned_model, whole_model

BASE = "smollm2-135m-instruct"
LINE = b'{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}]}\n'


class Shop:
    """A project with one key, and a file in it."""

    def __init__(self, gateway) -> None:
        self.gateway = gateway
        self.store = gateway.store
        organization = self.store.tenancy.organizations.find("default")
        self.organization_id = organization.id
        self.project = self.store.tenancy.projects.create(organization.id, new_id("shop"))
        _, self.key = self.store.keys.create(project_id=self.project.id, name="k")
        gateway.wait_seen()
        self.sdk = self.client(self.key)
        self.file_id = self.upload()
        self.jobs = self.sdk.fine_tuning.jobs

    def client(self, key: str) -> OpenAI:
        return OpenAI(base_url=f"{self.gateway.url}/v1", api_key=key, max_retries=0)

    def upload(self, purpose: str = "fine-tune") -> str:
        return self.sdk.files.create(file=("d.jsonl", LINE * 12), purpose=purpose).id

    def create(self, **fields):
        return self.jobs.create(**{"model": BASE, "training_file": self.file_id, **fields})

    def take(self, job_id: str) -> Job:
        """Take a job as a runner would."""
        known = self.store.jobs.find(job_id)
        return self.store.jobs.take(job_id, seen_attempt=known.attempt)

    @property
    def ledger(self) -> TrainingLedger:
        database, clock = self.store.database, self.store.clock
        return TrainingLedger(database, clock, Books(database, clock), Tariff(database, clock))

    def train(self, job_id: str, num_tokens: int, *, at_most: int = 1000) -> Job:
        """Bring a job to where it trains, its most held, with so many tokens behind it."""
        taken = self.take(job_id)
        self.ledger.hold(taken, self.ledger.quote(taken, at_most))
        progress = {"step": 1, "num_steps": 2, "loss": 0.5, "tokens_per_s": 9.0, "eta_s": 60.0}
        change = JobChange(
            status=JobStatus.RUNNING, progress={**progress, "trained_tokens": num_tokens}
        )
        return self.store.jobs.write(job_id, taken.attempt, change)

    def rows(self, statement):
        with self.store.database.read() as session:
            return list(session.scalars(statement))


@pytest.fixture
def shop(gateway) -> Iterator[Shop]:
    made = Shop(gateway)
    with made.sdk:
        yield made


@pytest.fixture
def price(shop: Shop) -> Decimal:
    """What a token costs to train."""
    rates = Rates(Decimal(0), Decimal(0), Decimal(0), training_per_million=Decimal(1000))
    Tariff(shop.store.database, shop.store.clock).override(
        BASE, rates, tier="default", currency="USD"
    )
    return Decimal("0.001")


def test_job_has_openais_shape_and_every_number_is_auto_until_it_is_known(shop):
    job = shop.create(suffix="my-model", seed=7, metadata={"team": "a"})
    assert (job.object, job.status, job.model) == ("fine_tuning.job", "validating_files", BASE)
    assert (job.training_file, job.validation_file, job.seed) == (shop.file_id, None, 7)
    assert job.hyperparameters.n_epochs == "auto"
    assert job.method.type == "supervised"
    assert job.method.supervised.hyperparameters.batch_size == "auto"
    assert (job.finished_at, job.error, job.fine_tuned_model) == (None, None, None)
    assert (job.result_files, job.integrations, job.metadata) == ([], [], {"team": "a"})
    assert job.organization_id == shop.organization_id
    assert shop.jobs.retrieve(job.id) == job
    assert job.model_extra["maas"]["recipe"] == "lora"
    taken = shop.take(job.id)
    resolved = {"n_epochs": 9, "batch_size": 4, "learning_rate_multiplier": 1.0}
    shop.store.jobs.write(
        job.id, taken.attempt, JobChange(resolved=resolved, report={"num_examples": 12})
    )
    known = shop.jobs.retrieve(job.id)
    assert known.hyperparameters.n_epochs == known.method.supervised.hyperparameters.n_epochs == 9
    assert known.model_extra["maas"]["report"]["num_examples"] == 12


def test_numbers_and_recipe_are_taken_from_method_or_from_the_old_place(shop):
    numbers = {"n_epochs": 2, "recipe": "pretrain"}
    old = shop.create(hyperparameters=numbers)
    new = shop.create(method={"type": "supervised", "supervised": {"hyperparameters": numbers}})
    for job in (old, new):
        assert job.hyperparameters.n_epochs == 2
        assert job.model_extra["maas"]["recipe"] == "pretrain"
    dpo = shop.create(method={"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.2}}})
    assert (dpo.method.type, dpo.method.dpo.hyperparameters.beta) == ("dpo", 0.2)
    assert dpo.model_extra["maas"]["recipe"] == "dpo"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"suffix": "a:b"}, "suffix"),
        ({"suffix": "x" * 65}, "suffix"),
        ({"seed": -1}, "seed"),
        ({"seed": True}, "seed"),
        ({"hyperparameters": {"n_epochs": 0}}, "hyperparameters.n_epochs"),
        ({"hyperparameters": {"n_epochs": 51}}, "hyperparameters.n_epochs"),
        ({"hyperparameters": {"batch_size": 10**9}}, "hyperparameters.batch_size"),
        (
            {"hyperparameters": {"learning_rate_multiplier": -1.0}},
            "hyperparameters.learning_rate_multiplier",
        ),
        ({"hyperparameters": {"recipe": "dpo"}}, "hyperparameters.recipe"),
        ({"hyperparameters": {"recipe": "../lora"}}, "hyperparameters.recipe"),
        ({"hyperparameters": {"beta": 0.1}}, "hyperparameters.beta"),
        ({"hyperparameters": {"more": 1}}, "hyperparameters.more"),
        ({"method": {"type": "reinforcement"}}, "method.type"),
        ({"method": {"type": "supervised", "dpo": {}}}, "method.dpo"),
        ({"method": {"type": "dpo"}, "hyperparameters": {}}, "hyperparameters"),
        ({"integrations": [{"type": "wandb", "wandb": {"project": "p"}}]}, "integrations"),
        ({"metadata": {str(n): "" for n in range(17)}}, "metadata"),
        ({"metadata": {"k" * 65: ""}}, "metadata"),
        ({"metadata": {"k": "v" * 513}}, "metadata"),
        ({"metadata": {"k": "\0"}}, "metadata"),
        ({"metadata": {'a"b': ""}}, "metadata"),
        ({"extra_body": {"unknown": 1}}, "unknown"),
    ],
)
def test_what_makes_no_sense_is_a_400_that_names_the_field(shop, fields, param):
    with pytest.raises(openai.BadRequestError) as raised:
        shop.create(**fields)
    assert raised.value.param == param
    assert shop.jobs.list().data == []


def test_model_or_file_that_cannot_be_trained_with_is_refused(shop):
    with pytest.raises(openai.NotFoundError):
        shop.create(model="nothing")
    with pytest.raises(openai.BadRequestError):
        shop.create(model="all-minilm-l6-v2")
    with pytest.raises(openai.NotFoundError):
        shop.create(training_file="file-nothing")
    with pytest.raises(openai.BadRequestError) as raised:
        shop.create(validation_file=shop.upload("user_data"))
    assert raised.value.param == "validation_file"


RECIPES = ["lora", "qlora", "full", "pretrain", "dpo"]
# What works to its end: parent, method, recipe. All else is refused before anything runs.
WORKS = {
    *(("base", "supervised", name) for name in ("lora", "qlora", "full", "pretrain")),
    *(("adapter", "supervised", name) for name in ("lora", "qlora", "pretrain")),
    *((parent, "dpo", "dpo") for parent in ("base", "adapter")),
}


@pytest.fixture
def gpus(monkeypatch) -> list[Gpu]:
    """The GPUs of the machine; none, whatever it really has."""
    found: list[Gpu] = []
    machine = Machine(2, 2**34, 2**34, 2**34)
    monkeypatch.setattr(
        "maas.bootstrap.gateway.probe_machine", lambda _: replace(machine, gpus=tuple(found))
    )
    return found


@pytest.mark.parametrize("parent", ["base", "adapter", "whole"])
@pytest.mark.parametrize("has_gpu", [False, True])
def test_each_combination_is_made_or_refused_at_once(shop, gpus, parent, has_gpu):
    gpus += [Gpu("one", 2**36)] if has_gpu else []
    project_id = shop.project.id
    model = {
        "base": lambda: BASE,
        "adapter": lambda: tuned_model(shop.store, project_id, base=BASE).id,
        "whole": lambda: whole_model(shop.store, project_id, base=BASE).id,
    }[parent]()
    for method, recipe in product(("supervised", "dpo"), RECIPES):
        wanted = {"type": method, method: {"hyperparameters": {"recipe": recipe}}}
        if (parent, method, recipe) in WORKS and (has_gpu or recipe != "qlora"):
            job = shop.create(model=model, method=wanted)
            assert (job.model, job.model_extra["maas"]["recipe"]) == (model, recipe)
            assert shop.store.jobs.find(job.id).base_model_id == BASE
            continue
        with pytest.raises(openai.BadRequestError) as raised:
            shop.create(model=model, method=wanted)
        assert raised.value.code in {"invalid_request", "capability_missing"}
        is_parents = parent == "whole" and (recipe == "dpo") == (method == "dpo")
        assert raised.value.param == ("model" if is_parents else "hyperparameters.recipe")
    num_made = sum(entry[0] == parent and (has_gpu or entry[2] != "qlora") for entry in WORKS)
    assert len(shop.jobs.list().data) == num_made


def test_recipe_that_needs_a_gpu_says_what_to_take_instead(shop, gpus):
    with pytest.raises(openai.BadRequestError, match="GPU, and there is none here; use") as raised:
        shop.create(hyperparameters={"recipe": "qlora"})
    assert raised.value.code == "capability_missing"


def test_only_the_projects_own_published_models_can_be_gone_on_from(shop, gateway):
    other = Shop(gateway)
    hidden = [
        tuned_model(shop.store, other.project.id, base=BASE),
        tuned_model(shop.store, shop.project.id, base=BASE, state=TunedState.CANDIDATE),
        tuned_model(shop.store, shop.project.id, base=BASE),
    ]
    shop.store.tuned_models.delete(shop.project.id, hidden[-1].id)
    for model in (*(item.id for item in hidden), "ft:nobody"):
        with pytest.raises(openai.NotFoundError, match="can be tuned"):
            shop.create(model=model)
    other.sdk.close()


def test_model_that_training_cannot_load_is_refused_at_once(shop):
    for recipe in ("lora", "full"):
        with pytest.raises(openai.BadRequestError, match="code of its own") as raised:
            shop.create(model="baichuan2-7b-chat", hyperparameters={"recipe": recipe})
        assert (raised.value.code, raised.value.param) == ("capability_missing", "model")


def test_files_of_another_project_are_a_404(shop, gateway):
    theirs = Shop(gateway)
    with pytest.raises(openai.NotFoundError):
        shop.create(training_file=theirs.file_id)


def test_keys_that_may_not_tune_or_not_this_model(shop):
    keys, project_id = shop.store.keys, shop.project.id
    _, other = keys.create(project_id=project_id, name="m", terms=KeyTerms(models=("tiny",)))
    viewer = shop.store.tenancy.service_accounts.create(project_id, name="v", role=Role.VIEWER)
    _, seeing = keys.create(
        project_id=project_id, name="v", terms=KeyTerms(service_account_id=viewer.id)
    )
    shop.gateway.wait_seen()
    job = shop.create()
    with (
        shop.client(other) as sdk,
        pytest.raises((openai.NotFoundError, openai.PermissionDeniedError)),
    ):
        sdk.fine_tuning.jobs.create(model=BASE, training_file=shop.file_id)
    with shop.client(seeing) as sdk:
        assert sdk.fine_tuning.jobs.retrieve(job.id).id == job.id
        assert len(sdk.fine_tuning.jobs.list_events(job.id).data) == 2
        for forbidden in (
            lambda: sdk.fine_tuning.jobs.create(model=BASE, training_file=shop.file_id),
            lambda: sdk.fine_tuning.jobs.cancel(job.id),
            lambda: sdk.fine_tuning.jobs.pause(job.id),
        ):
            with pytest.raises(openai.PermissionDeniedError):
                forbidden()


def test_list_is_paged_newest_first_and_filtered_by_metadata(shop):
    odd = "a'b.$[0]%"
    labels = [{"team": "a"}, {"team": "b", odd: "x"}, {"team": "a", "x": "1"}, {}]
    made = [shop.create(metadata=label).id for label in labels]
    assert [job.id for job in shop.jobs.list(limit=2)] == made[::-1]
    first = shop.jobs.list(limit=3)
    assert first.has_more
    assert [job.id for job in shop.jobs.list(after=first.data[-1].id).data] == made[:1]
    assert [job.id for job in shop.jobs.list(metadata={"team": "a"})] == [made[2], made[0]]
    assert [job.id for job in shop.jobs.list(metadata={"team": "a", "x": "1"})] == [made[2]]
    assert [job.id for job in shop.jobs.list(metadata={odd: "x"})] == [made[1]]
    assert [job.id for job in shop.jobs.list(extra_query={"metadata": "null"})] == [made[3]]
    with pytest.raises(openai.BadRequestError):
        shop.jobs.list(after="ftjob-nothing")


def test_events_and_checkpoints_are_told_newest_first(shop):
    job = shop.create()
    attempt = shop.train(job.id, 5).attempt
    for step in (1, 2, 3):
        told = Telling(f"step:{step}", f"Step {step}", data={"step": step, "train_loss": 1 / step})
        shop.store.jobs.write(job.id, attempt, JobChange(tellings=(told, told)))
        shop.store.jobs.add_checkpoint(
            job.id,
            attempt,
            step=step,
            metrics={"step": step, "train_loss": 1 / step},
            model_id=f"ft:{BASE}:org::{job.id}:ckpt-step-{step}",
            keep=2,
        )
    events = list(shop.jobs.list_events(job.id, limit=3))
    assert [event.message for event in events][-2:] == [
        f"Validating training file: {shop.file_id}",
        f"Created fine-tuning job: {job.id}",
    ]
    metrics = [event for event in events if event.type == "metrics"]
    assert [event.data["step"] for event in metrics] == [3, 2, 1]
    assert {event.object for event in events} == {"fine_tuning.job.event"}
    kept = shop.jobs.checkpoints.list(job.id).data
    assert [item.step_number for item in kept] == [3, 2]
    assert kept[0].metrics.train_loss == pytest.approx(1 / 3)
    assert kept[0].fine_tuned_model_checkpoint.endswith(":ckpt-step-3")
    running = shop.jobs.retrieve(job.id)
    assert running.model_extra["maas"]["progress"]["tokens_per_s"] == 9.0
    assert running.estimated_finish > running.created_at


def test_pause_and_resume(shop):
    job = shop.create()
    assert shop.jobs.pause(job.id).status == "paused"
    assert shop.jobs.pause(job.id).status == "paused"
    assert shop.jobs.resume(job.id).status == "validating_files"
    with pytest.raises(openai.ConflictError):
        shop.jobs.resume(job.id)
    shop.train(job.id, 1)
    asked = shop.jobs.pause(job.id)
    # It pauses with its next step, which is kept.
    assert (asked.status, asked.model_extra["maas"]["pausing"]) == ("running", True)
    shop.jobs.cancel(job.id)
    for act in (shop.jobs.pause, shop.jobs.resume):
        with pytest.raises(openai.ConflictError):
            act(job.id)


def test_cancelled_job_is_charged_once_for_what_was_trained_and_gives_back_the_rest(shop, price):
    key = LimitKey(LimitScope.PROJECT, shop.project.id)
    shop.store.tenancy.limits.set(key, monthly_budget=Decimal(2))
    job = shop.create()
    shop.train(job.id, 300, at_most=1000)
    assert [grant.amount for grant in shop.rows(grants_of(job.id))] == [10**9]
    ended = shop.jobs.cancel(job.id)
    assert (ended.status, ended.trained_tokens) == ("cancelled", 300)
    assert ended.finished_at >= ended.created_at
    assert shop.jobs.cancel(job.id) == ended
    (charge,) = shop.rows(select(JournalRow).where(JournalRow.project_id == shop.project.id))
    assert (charge.id, charge.endpoint) == (job.id, "/v1/fine_tuning/jobs")
    assert (charge.training_tokens, charge.amount) == (300, 300 * price)
    assert shop.rows(grants_of(job.id)) == []
    counters = shop.rows(select(CounterRow).where(CounterRow.key.contains(shop.project.id)))
    assert [(row.used, row.leased) for row in counters] == [(300_000_000, 0)]
    check_is_in_usage(shop, 300, 300 * price)


def check_is_in_usage(shop, num_tokens, amount):
    _, value = shop.store.keys.create(
        project_id=shop.project.id, name="a", scopes=("organization",)
    )
    shop.gateway.wait_seen()
    query = {"start_time": int(shop.store.clock.now()) - 3600, "project_ids": shop.project.id}
    headers = {"Authorization": f"Bearer {value}"}

    def results(path):
        answer = shop.gateway.client.get(path, params=query, headers=headers).json()
        return [item for bucket in answer["data"] for item in bucket["results"]]

    (used,) = results("/v1/organization/usage/fine_tuning")
    assert used["training_tokens"] == num_tokens
    (cost,) = results("/v1/organization/costs")
    assert Decimal(cost["amount"]["exact"]) == amount


def grants_of(job_id):
    return select(GrantRow).where(GrantRow.spender_id == f"job:{job_id}")


def test_cancel_before_anything_was_held_costs_nothing_and_the_runner_cannot_hold_after(
    shop, price
):
    key = LimitKey(LimitScope.PROJECT, shop.project.id)
    shop.store.tenancy.limits.set(key, monthly_budget=Decimal(2))
    job = shop.create()
    taken = shop.take(job.id)
    quote = shop.ledger.quote(taken, 1000)
    assert shop.jobs.cancel(job.id).trained_tokens == 0
    with pytest.raises(Exception, match="not the newest"):
        shop.ledger.hold(taken, quote)
    assert shop.rows(grants_of(job.id)) == []
    assert shop.rows(select(JournalRow).where(JournalRow.project_id == shop.project.id)) == []


def test_another_tenants_jobs_are_not_there(shop, gateway):
    theirs = Shop(gateway)
    job = theirs.create()
    for act in (
        shop.jobs.retrieve,
        shop.jobs.cancel,
        shop.jobs.pause,
        shop.jobs.resume,
        shop.jobs.list_events,
        shop.jobs.checkpoints.list,
    ):
        with pytest.raises(openai.NotFoundError):
            act(job.id)
    assert shop.jobs.list().data == []
    assert theirs.jobs.retrieve(job.id).status == "validating_files"


def test_fifty_creates_with_one_idempotency_key_make_one_job(shop):
    def create(_):
        return shop.create(extra_headers={"Idempotency-Key": "once"}).id

    with ThreadPoolExecutor(50) as pool:
        made = set(pool.map(create, range(50)))
    assert len(made) == 1
    rows = shop.rows(select(JobRow.id).where(JobRow.project_id == shop.project.id))
    assert rows == list(made)


@pytest.mark.parametrize("status", ["succeeded", "failed", "cancelled"])
def test_end_is_told_to_webhooks_in_openais_shape_once(shop, status):
    store = shop.store
    hooks = WebhookRepository(store.database, store.clock, str)
    hook, _ = hooks.create(
        shop.organization_id, name=status, url="http://127.0.0.1:9/", events=(event_of(status),)
    )
    job = shop.create()
    taken = shop.take(job.id)
    if status == "cancelled":
        shop.jobs.cancel(job.id)
        shop.jobs.cancel(job.id)
    else:
        error = {"code": "training_failed", "message": "out of luck", "param": None}
        ending = JobChange(status=JobStatus(status), error=error if status == "failed" else None)
        store.jobs.write(job.id, taken.attempt, ending)
    (delivery,) = shop.rows(select(DeliveryRow).where(DeliveryRow.webhook_id == hook.id))
    hooks.delete(shop.organization_id, hook.id)
    said = json.loads(delivery.body)
    assert (said["object"], said["type"]) == ("event", event_of(status))
    assert said["data"] == {"id": job.id}
    ended = shop.jobs.retrieve(job.id)
    assert ended.status == status
    assert (ended.error.message if ended.error else None) == (
        "out of luck" if status == "failed" else None
    )


def event_of(status: str) -> str:
    return f"fine_tuning.job.{status}"


@pytest.mark.parametrize("state", [TunedState.PUBLISHED, TunedState.REFUSED])
def test_job_shows_the_receipt_of_what_it_published_or_could_not(shop, state):
    job = shop.create()
    taken = shop.take(job.id)
    assert shop.jobs.retrieve(job.id).maas["receipt"] is None
    name = f"ft:{BASE}:default::{job.id[-10:]}"
    made = tuned_model(shop.store, shop.project.id, base=BASE, state=TunedState.CANDIDATE)
    shop.store.tuned_models.add(replace(made, id=name, job_id=job.id))
    is_published = state is TunedState.PUBLISHED
    shop.store.tuned_models.judge(name, state=state, receipt={"verdict": state.value})
    status = JobStatus.SUCCEEDED if is_published else JobStatus.FAILED
    ending = JobChange(status=status, fine_tuned_model=name if is_published else None)
    shop.store.jobs.write(job.id, taken.attempt, ending)
    assert shop.jobs.retrieve(job.id).maas["receipt"] == {"verdict": state.value}


def test_recipes_are_listed(shop):
    headers = {"Authorization": f"Bearer {shop.key}"}
    found = shop.gateway.client.get("/v1/fine_tuning/recipes", headers=headers).json()
    assert {"lora", "qlora", "full", "dpo", "pretrain"} <= {recipe["name"] for recipe in found}


def test_settings_bound_the_jobs_of_a_project_that_are_not_over(shop, monkeypatch):
    most = Settings().finetune.max_unfinished_jobs
    monkeypatch.setattr(type(shop.store.jobs), "count_unfinished", lambda *_: most - 1)
    job = shop.create()
    monkeypatch.setattr(type(shop.store.jobs), "count_unfinished", lambda *_: most)
    with pytest.raises(openai.RateLimitError) as raised:
        shop.create()
    assert str(most) in raised.value.message
    assert [known.id for known in shop.jobs.list()] == [job.id]
