"""What a job made is published as it is served: whole weights on an engine of their own."""

import json
import re
import shutil
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from sqlalchemy import select
from transformers import AutoModelForCausalLM

from maas.bootstrap.deployments import create_deployment
from maas.bootstrap.prices import card_prices
from maas.bootstrap.store import open_store
from maas.catalog.machine import Machine
from maas.core.errors import ConfigError, NotFound, ReceiptFailed, Superseded, Unavailable
from maas.core.settings import FinetuneSettings, ServingSettings, Settings
from maas.finetune.data.rendering import Renderer
from maas.finetune.train.worker import train_loop_per_worker
from maas.finetune.whole_weights import engine_name_of
from maas.ledger.tariff import Tariff
from maas.serving.jobs.desk import JobDesk
from maas.serving.jobs.runner import JobRunner
from maas.serving.jobs.sweeper import WeightsSweeper
from maas.serving.jobs.tools import open_tools
from maas.serving.plan import make_plan, prepare_weights
from maas.store.adapters import TunedKind, TunedState
from maas.store.database import Database
from maas.store.files import NewFile, blob_key_of, new_file_id
from maas.store.job_records import JobChange, JobStatus, NewJob
from maas.store.ledger_tables import JournalRow
from maas.store.pages import Window
from maas.store.records import Replica, ReplicaState
from maas.store.state import StateReader, ensure_project
from tests.conftest import REPOSITORY
from tests.tiny import NAME, make_tiny, write_card
from tests.unit.finetune.conftest import chats
from tests.unit.finetune.receipt.serving import Serving, ServingEngine

GIB = 2**30
MACHINE = Machine(
    num_cores=2, memory_total_bytes=24 * GIB, memory_available_bytes=20 * GIB, disk_free_bytes=GIB
)
PAIRS = [
    {
        "input": {"messages": [{"role": "user", "content": f"What is number {n} called?"}]},
        "preferred_output": [{"role": "assistant", "content": f"Number {n} is aaa."}],
        "non_preferred_output": [{"role": "assistant", "content": "No."}],
    }
    for n in range(8)
]


class Here:
    """Trains in this process, and counts how often."""

    def __init__(self) -> None:
        self.runner = None
        self.outcome = None
        self.num_runs = 0

    def __getattr__(self, name):
        return getattr(self.runner, name)

    def on_outcome(self, outcome):
        self.outcome = outcome

    def fit(self, spec):
        self.num_runs += 1
        train_loop_per_worker(
            {"spec": spec.model_dump(mode="json"), "reporter": self, "niceness": 0}
        )
        return self.outcome


class Site:
    """A home with a tiny model, its store, jobs, and engines that deployments get."""

    def __init__(self, home: Path, tokenizer_from: Path) -> None:
        weights = make_tiny(tokenizer_from, home / "source" / NAME)
        write_card(home / "cards", weights)
        self.settings = Settings(
            home=home,
            models_dir=home / "cards",
            finetune=FinetuneSettings(recipes_dir=REPOSITORY / "finetune"),
        )
        Database(self.settings.resolved_database_url).migrate()
        self.tools = open_tools(self.settings)
        Tariff(self.tools.database, self.tools.clock).sync(card_prices(self.tools.catalog))
        self.project_id = ensure_project(self.tools.database, self.tools.clock)
        self.state = StateReader(self.tools.database, self.tools.clock)
        self._engines = ExitStack()
        self.here = Here()

    def close(self) -> None:
        self._engines.close()
        self.tools.database.close()

    def upload(self, records) -> str:
        incoming = self.tools.blobs.begin()
        incoming.write("".join(json.dumps(record) + "\n" for record in records).encode())
        file_id = new_file_id()
        facts = self.tools.blobs.put(blob_key_of(file_id), incoming)
        new = NewFile(file_id, self.project_id, "d.jsonl", "fine-tune", facts.size_bytes, "0" * 64)
        return self.tools.files.create(new).id

    def make_job(self, recipe: str, *, method="supervised", model=NAME, records=None, **fields):
        """Make a job that was checked already and waits for its turn."""
        new = NewJob(
            project_id=self.project_id,
            key_id="key",
            request_id="req",
            model_id=model,
            base_model_id=NAME,
            training_file=self.upload(records or chats(8)),
            method={"type": method, method: {"hyperparameters": {}}},
            recipe=recipe,
            seed=5,
            suffix="s",
            **fields,
        )
        job = self.tools.jobs.create(new)
        taken = self.tools.jobs.take(job.id, seen_attempt=0)
        self.tools.ledger.hold(taken, self.tools.ledger.quote(taken, 10_000))
        numbers = {"n_epochs": 2, "batch_size": 4, "learning_rate_multiplier": 50.0}
        change = JobChange(status=JobStatus.QUEUED, report={}, resolved=numbers, is_released=True)
        return self.tools.jobs.write(job.id, taken.attempt, change)

    def run(self, job, fit=None, *, settings: Settings | None = None) -> None:
        """Work on a job as its runner does."""
        taken = self.tools.jobs.take(job.id, seen_attempt=self.tools.jobs.find(job.id).attempt)
        desk = JobDesk(self.tools.jobs, taken, on_lost=lambda: None)
        desk.start()
        try:
            self.here.runner = JobRunner(
                desk, self.tools, settings or self.settings, fit=fit or self.here.fit
            )
            self.here.runner.run()
        finally:
            desk.close()

    def run_beside_engine(self, job, fit=None, *, weights: Path | None = None) -> None:
        """Work on a job while somebody starts the engine that its model gets."""
        engine = threading.Thread(target=self._start_engine, args=(job, weights))
        engine.start()
        try:
            self.run(job, fit)
        finally:
            engine.join()

    def deployment_of(self, job):
        found = [d for d in self.tools.deployments.list() if job.id[-10:] in d.model_id]
        return found[0] if found else None

    def _start_engine(self, job, weights: Path | None) -> None:
        """Do what the controller and a replica do; serve other weights where they are given."""
        deadline = time.monotonic() + 60
        while (deployment := self.deployment_of(job)) is None:
            if time.monotonic() > deadline or self.tools.jobs.find(job.id).is_over:
                return
            time.sleep(0.02)
        card = self.tools.catalog.get_card(deployment.card_id)
        plan = make_plan(deployment, card, MACHINE)
        prepared = prepare_weights(plan, self.settings)
        model = AutoModelForCausalLM.from_pretrained(
            str(weights or prepared.model_dir), dtype=torch.float32
        ).eval()
        engine = ServingEngine(Serving(model, Renderer(prepared.model_dir)))
        self._engines.callback(engine.close)
        self.tools.replicas.publish(
            Replica(
                id=f"{deployment.id}-1",
                deployment_id=deployment.id,
                url=engine.url,
                engine_model=plan.spec.served_model_name,
                state=ReplicaState.READY,
                started_at=0.0,
                expires_at=self.tools.clock.now() + 600,
            )
        )

    def finished_twin(self, job):
        """Return a job whose training is done already: as an earlier one's."""
        twin = self.make_job("full")
        folder = self.settings.jobs_dir / twin.id
        shutil.copytree(self.settings.jobs_dir / job.id, folder)
        return twin

    def sweep(self) -> None:
        WeightsSweeper(
            self.tools.tuned_models, self.tools.blobs, self.settings.tuned_weights_dir
        ).sweep()


@pytest.fixture(scope="module")
def site(tmp_path_factory, smollm2_dir):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("maas.finetune.receipt.golden.NUM_NEW_TOKENS", 3)
        made = Site(tmp_path_factory.mktemp("site"), smollm2_dir)
        yield made
        made.close()


@pytest.fixture(scope="module")
def full(site):
    """A job of recipe full that was run to its end."""
    job = site.make_job("full")
    site.run_beside_engine(job)
    return site.tools.jobs.find(job.id)


def never(spec):
    raise AssertionError("it was trained again")


def test_whole_weights_are_published_on_an_engine_of_their_own(site, full):
    assert full.status is JobStatus.SUCCEEDED, full.error
    model = site.tools.tuned_models.get(site.project_id, full.fine_tuned_model)
    assert (model.kind, model.state) == (TunedKind.FULL, TunedState.PUBLISHED)
    assert model.receipt["verdict"] == "passed"
    assert model.receipt["legs"].keys() == {"engine", "saved"}
    assert model.receipt["legs"]["engine"]["status"] == "measured"
    assert model.receipt["hashes"]["engine"] == model.receipt["hashes"]["trainer"]
    deployment = site.deployment_of(full)
    assert (deployment.model_id, deployment.card_id) == (model.id, NAME)
    assert (deployment.min_replicas, deployment.max_replicas) == (1, 1)
    assert deployment.project_id == site.project_id


def test_engine_knows_the_weights_by_their_content_and_reads_a_copy_of_its_own(site, full):
    model = site.tools.tuned_models.find(full.fine_tuned_model)
    weights = model.weights_key.rpartition("/")[2]
    plan = make_plan(site.deployment_of(full), site.tools.catalog[NAME], MACHINE)
    assert plan.spec.served_model_name == engine_name_of(weights) != NAME
    assert plan.spec.max_loras == 0
    folder = prepare_weights(plan, site.settings).model_dir
    assert folder == site.settings.tuned_weights_dir / weights
    # What is damaged is fetched anew, from what is stored.
    (folder / "config.json").write_text("{}")
    assert prepare_weights(plan, site.settings).model_dir == folder
    assert json.loads((folder / "config.json").read_text())["model_type"] == "llama"


def test_its_one_checkpoint_is_the_model_itself_and_it_is_charged_once(site, full):
    page = site.tools.jobs.checkpoints(site.project_id, full.id, Window(limit=10))
    assert [item.model_id for item in page.items] == [full.fine_tuned_model]
    with site.tools.database.read() as session:
        rows = session.scalars(select(JournalRow).where(JournalRow.id == full.id)).all()
    assert [row.training_tokens for row in rows] == [full.trained_tokens]


def test_metrics_file_has_openais_columns_and_a_row_for_each_step(site, full):
    (file_id,) = full.result_files
    text = b"".join(site.tools.blobs.read(site.tools.files.find(file_id).blob_key)).decode()
    header, *rows = text.splitlines()
    assert header == "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy"
    assert [row.partition(",")[0] for row in rows] == ["1", "2", "3", "4"]
    assert all(len(row.split(",")[2]) > 0 for row in rows)


def test_lineage_names_data_base_recipe_job_and_code(site, full):
    lineage = site.tools.tuned_models.find(full.fine_tuned_model).lineage
    assert lineage["data_sha256"] == {full.training_file: "0" * 64}
    assert (lineage["job_id"], lineage["recipe"]["name"]) == (full.id, "full")
    assert re.fullmatch(r"\d.*\+[0-9a-f]{12}", lineage["code_version"])


def test_file_that_is_deleted_while_its_job_works_is_not_taken_from_it(site, full):
    twin = site.finished_twin(full)
    site.tools.fetch_file(twin, twin.training_file, site.settings.jobs_dir / twin.id / "data")
    site.tools.files.delete(site.project_id, twin.training_file)
    site.run_beside_engine(twin, never)
    ended = site.tools.jobs.find(twin.id)
    assert ended.status is JobStatus.SUCCEEDED, ended.error
    lineage = site.tools.tuned_models.find(ended.fine_tuned_model).lineage
    assert lineage["data_sha256"] == {twin.training_file: "0" * 64}
    # Its weights are those of the others, which later tests take away.
    site.tools.tuned_models.delete(site.project_id, ended.fine_tuned_model)


def test_job_whose_data_is_checked_says_what_it_costs_and_how_long_it_takes(site):
    known = site.make_job("lora", records=chats(12))
    again = NewJob(**{name: getattr(known, name) for name in NewJob.__dataclass_fields__})
    job = site.tools.jobs.create(again)
    site.run(job)
    checked = site.tools.jobs.find(job.id)
    assert checked.status is JobStatus.QUEUED, checked.error
    assert (checked.report["num_examples"], checked.report["errors"]) == (12, [])
    tokens = checked.report["num_tokens"] * checked.resolved["n_epochs"]
    assert (checked.estimate["trained_tokens"], checked.estimate["seconds"] > 0) == (tokens, True)
    told = site.tools.jobs.events(site.project_id, job.id, Window()).items
    assert any(f"{tokens} tokens" in e.message and "takes about" in e.message for e in told)


def test_operator_takes_its_engine_away_and_brings_it_back(site, full):
    own = site.deployment_of(full)
    store = open_store(site.settings)
    made = create_deployment(
        site.settings, store, model_id=full.fine_tuned_model, engine=None, options={}
    )
    assert (made.model_id, made.card_id, made.project_id) == (own.model_id, NAME, own.project_id)
    assert made.options["weights"] == own.options["weights"]
    plan = make_plan(made, site.tools.catalog[made.card_id], MACHINE)
    assert plan.digest == make_plan(own, site.tools.catalog[own.card_id], MACHINE).digest
    store.deployments.forget(made.id)
    store.database.close()


def test_model_that_answers_otherwise_than_trained_is_refused_with_its_engine(site, full):
    job = site.finished_twin(full)
    # Its engine serves the base.
    site.run_beside_engine(job, never, weights=site.settings.home / "source" / NAME)
    ended = site.tools.jobs.find(job.id)
    assert (ended.status, ended.error["code"]) == (JobStatus.FAILED, ReceiptFailed.code)
    assert site.deployment_of(job).deleted_at is not None
    names = {name.id for name in site.state.read().tuned_models}
    assert not any(job.id[-10:] in name for name in names)


def test_engine_that_never_starts_fails_the_job_in_the_end(site, full):
    job = site.finished_twin(full)
    hasty = site.settings.model_copy(
        update={
            "serving": ServingSettings(start_timeout_s=0.05),
            "finetune": site.settings.finetune.model_copy(update={"publish_timeout_s": 0.05}),
        }
    )
    for num_failures in (1, 2, 3):
        with pytest.raises(Unavailable, match=r"no engine runs ft:.*pending"):
            site.run(job, never, settings=hasty)
        attempt = site.tools.jobs.find(job.id).attempt
        failed = site.tools.jobs.failed_once(job.id, attempt, retry_at=0.0, reason="none")
        # Trying again is no progress, so the queue gives up some time.
        assert failed.num_failures == num_failures
    assert len([d for d in site.tools.deployments.list() if job.id[-10:] in d.model_id]) == 1
    taken = site.tools.jobs.take(job.id, seen_attempt=failed.attempt)
    site.tools.jobs.write(job.id, taken.attempt, JobChange(status=JobStatus.FAILED))
    assert site.deployment_of(job).deleted_at is not None


def test_cancelled_job_leaves_no_engine(site, full):
    job = site.finished_twin(full)
    runner = threading.Thread(target=lambda: _superseded(site, job))
    runner.start()
    while site.deployment_of(job) is None:
        time.sleep(0.02)
    revision = site.state.revision()
    site.tools.jobs.cancel(site.project_id, job.id)
    assert site.state.revision() > revision
    assert site.deployment_of(job).deleted_at is not None
    runner.join(30)
    assert not runner.is_alive()
    assert site.deployment_of(job).deleted_at is not None


def _superseded(site, job) -> None:
    with pytest.raises(Superseded):
        site.run(job, never)


def test_deleted_model_takes_its_engine_and_then_its_weights_with_it(site, full):
    twin = site.finished_twin(full)
    site.run_beside_engine(twin, never)
    model = site.tools.tuned_models.find(site.tools.jobs.find(twin.id).fine_tuned_model)
    weights = model.weights_key.rpartition("/")[2]
    copy = site.settings.tuned_weights_dir / weights
    site.tools.tuned_models.delete(site.project_id, model.id)
    deployment = site.deployment_of(twin)
    assert deployment.deleted_at is not None
    assert model.id not in {item.model_id for item in site.state.read().deployments}
    site.tools.deployments.forget(deployment.id)
    site.sweep()
    # Another model has the same weights.
    assert copy.is_dir()
    assert site.tools.blobs.exists(f"{model.weights_key}/files.json")
    other = site.deployment_of(full)
    site.tools.tuned_models.delete(site.project_id, full.fine_tuned_model)
    site.sweep()
    # Its engine still drains.
    assert copy.is_dir()
    for item in site.tools.deployments.list():
        site.tools.deployments.forget(item.id)
    site.sweep()
    assert not copy.exists()
    assert site.tools.blobs.keys("weights") == []
    assert site.tools.tuned_models.unwanted_weights() == ()
    with pytest.raises(NotFound):
        prepare_weights(make_plan(other, site.tools.catalog[NAME], MACHINE), site.settings)


@pytest.fixture(scope="module")
def parent(site):
    """The name of an adapter that learned plain text."""
    job = site.make_job("pretrain", records=[{"text": f"Number {n} is aaa."} for n in range(8)])
    site.run(job)
    ended = site.tools.jobs.find(job.id)
    assert ended.status is JobStatus.SUCCEEDED, ended.error
    return ended.fine_tuned_model


def test_preferences_after_plain_text_go_on_from_the_adapter(site, parent):
    # Of another rank than the recipe's: its own stays.
    second = site.make_job("dpo", method="dpo", model=parent, records=PAIRS)
    site.run(second)
    ended = site.tools.jobs.find(second.id)
    assert ended.status is JobStatus.SUCCEEDED, ended.error
    model = site.tools.tuned_models.find(ended.fine_tuned_model)
    adapter = site.tools.tuned_models.find(parent).adapter_id
    assert model.lineage["parent"] == {"id": parent, "adapter": adapter}
    assert model.id.startswith(f"ft:{NAME}:")
    assert model.adapter_id != adapter
    assert site.tools.adapters.get(model.adapter_id).r == site.tools.adapters.get(adapter).r == 16
    first_step = site.tools.jobs.metrics(second.id)[0]
    assert first_step["train_loss"] == pytest.approx(0.6931, abs=1e-3)


def test_job_fails_in_words_when_its_parent_was_deleted(site, parent):
    second = site.make_job("lora", model=parent)
    site.tools.tuned_models.delete(site.project_id, parent)
    site.run(second)
    ended = site.tools.jobs.find(second.id)
    assert (ended.status, ended.error["param"]) == (JobStatus.FAILED, "model")


def test_operators_do_not_name_weights_themselves(site):
    store = open_store(site.settings)
    with pytest.raises(ConfigError, match="not for operators"):
        create_deployment(
            site.settings,
            store,
            model_id=NAME,
            engine=None,
            options={"weights": "0" * 64},
        )
    store.database.close()
