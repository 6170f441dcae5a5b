"""A job whose runner is killed again and again: one end, one charge, one model, the same losses."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from decimal import Decimal

import pytest
from sqlalchemy import select

from maas.bootstrap.prices import card_prices
from maas.bootstrap.store import save_settings
from maas.catalog.catalog import load_catalog
from maas.core.settings import FinetuneSettings, Settings
from maas.finetune.adapter_files import ADAPTER_NAMES
from maas.ledger.tariff import Tariff
from maas.serving.jobs.tools import open_tools
from maas.store.adapters import TunedState
from maas.store.files import NewFile, blob_key_of, new_file_id
from maas.store.finetune_tables import JobEventRow, TunedModelRow
from maas.store.job_records import JobStatus, NewJob
from maas.store.ledger_tables import CounterRow, GrantRow, JournalRow
from maas.store.limits import LimitKey, LimitRepository
from maas.store.records import LimitScope
from maas.store.state import ensure_project
from tests.conftest import REPOSITORY
from tests.tiny import NAME, make_tiny, write_card
from tests.unit.finetune.conftest import chats


@pytest.fixture(scope="module")
def weights(tmp_path_factory, smollm2_dir):
    return make_tiny(smollm2_dir, tmp_path_factory.mktemp("weights") / NAME)


class Site:
    """A home, its store, and jobs in it."""

    def __init__(self, home, url, weights):
        write_card(home / "cards", weights)
        self.settings = Settings(
            home=home,
            database_url=url,
            models_dir=home / "cards",
            finetune=FinetuneSettings(recipes_dir=REPOSITORY / "finetune"),
        )
        self.file = save_settings(self.settings)
        self.tools = open_tools(self.settings)
        tariff = Tariff(self.tools.database, self.tools.clock)
        tariff.sync(card_prices(load_catalog(home / "cards")))
        self.project_id = ensure_project(self.tools.database, self.tools.clock)
        LimitRepository(self.tools.database).set(
            LimitKey(LimitScope.PROJECT, self.project_id), monthly_budget=Decimal(1)
        )

    def upload(self, records):
        incoming = self.tools.blobs.begin()
        incoming.write("".join(json.dumps(record) + "\n" for record in records).encode())
        file_id = new_file_id()
        facts = self.tools.blobs.put(blob_key_of(file_id), incoming)
        new = NewFile(
            file_id, self.project_id, "d.jsonl", "fine-tune", facts.size_bytes, facts.sha256
        )
        return self.tools.files.create(new).id

    def make_job(self, file_id, **numbers):
        return self.tools.jobs.create(
            NewJob(
                project_id=self.project_id,
                key_id="key",
                request_id="req",
                model_id=NAME,
                base_model_id=NAME,
                training_file=file_id,
                method={"type": "supervised", "supervised": {"hyperparameters": numbers}},
                recipe="lora",
                seed=5,
                suffix="s",
            )
        )

    def start(self, job, *before):
        return subprocess.Popen(
            [*before, sys.executable, "-m", "tests.chaos.job_worker", str(self.file), job.id],
            cwd=REPOSITORY,
            env={**os.environ, "PYTHONWARNINGS": "ignore"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run_to_end(self, job):
        with self.start(job) as worker:
            _, said = worker.communicate(timeout=240)
        assert worker.returncode == 0, said[-2000:]

    def wait_taken(self, job, attempt, worker):
        """Wait until a worker is at work: before, there is nothing to break."""
        while self.tools.jobs.find(job.id).attempt == attempt and worker.poll() is None:
            time.sleep(0.05)

    def losses(self, job):
        return [(row["step"], row["train_loss"]) for row in self.tools.jobs.metrics(job.id)]

    def rows(self, statement):
        with self.tools.database.read() as session:
            return list(session.scalars(statement))


@pytest.fixture
def site(store_url, tmp_path, weights):
    made = Site(tmp_path, store_url, weights)
    yield made
    made.tools.database.close()


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("store_url", "num_kills"),
    [("sqlite", 3), pytest.param("postgres", 20, marks=pytest.mark.slow)],
    indirect=["store_url"],
)
def test_job_killed_at_random_ends_once_is_charged_once_and_has_one_model(site, num_kills):
    file_id = site.upload(chats(24))
    whole = site.make_job(file_id, n_epochs=6)
    site.run_to_end(whole)
    killed = site.make_job(file_id, n_epochs=6)
    drawn = random.Random(20)
    for _ in range(num_kills):
        before = site.tools.jobs.find(killed.id)
        if before.is_over:
            break
        with site.start(killed) as worker:
            site.wait_taken(killed, before.attempt, worker)
            time.sleep(drawn.uniform(0.0, 6.0))
            worker.send_signal(signal.SIGKILL)
    site.run_to_end(killed)
    check_ended_once(site, killed, num_kills)
    assert site.losses(killed) == site.losses(whole)
    ended, other = site.tools.jobs.find(killed.id), site.tools.jobs.find(whole.id)
    assert ended.trained_tokens == other.trained_tokens
    models = {model.id: model for model in site.tools.tuned_models.list()}
    ours, theirs = models[ended.fine_tuned_model], models[other.fine_tuned_model]
    assert ours.adapter_id == theirs.adapter_id


def check_ended_once(site, job, num_kills):
    ended = site.tools.jobs.find(job.id)
    assert ended.status is JobStatus.SUCCEEDED, ended.error
    assert ended.attempt > 1 or num_kills == 0
    events = site.rows(select(JobEventRow.key).where(JobEventRow.job_id == job.id))
    assert events.count("terminal") == 1
    charges = site.rows(select(JournalRow).where(JournalRow.id == job.id))
    assert [charge.training_tokens for charge in charges] == [ended.trained_tokens]
    assert charges[0].amount == ended.trained_tokens * Decimal(8) / 10**6
    models = site.rows(
        select(TunedModelRow).where(
            TunedModelRow.job_id == job.id, TunedModelRow.deleted_at.is_(None)
        )
    )
    assert [m.id for m in models if ":ckpt-step-" not in m.id] == [ended.fine_tuned_model]
    assert len(models) == 4
    assert {model.state for model in models} == {TunedState.PUBLISHED.value}
    # What was held is given back, and the counter is what the journal says.
    assert sum(grant.amount for grant in site.rows(select(GrantRow))) == 0
    budget = [row for row in site.rows(select(CounterRow)) if row.key.startswith("monthly")]
    spent = sum(row.amount for row in site.rows(select(JournalRow)))
    assert [(row.used, row.leased) for row in budget] == [(int(spent * 10**9), 0)]


# A folder becomes a disk of its own, with so many KiB to spare, that only this process sees.
SMALL_DISK = """
set -e
folder=$1 spare=$2; shift 2
mkdir -p "$folder"; cp -a "$folder" "$folder.was"
used=$(du -sk "$folder" | cut -f1)
mount -t tmpfs -o size=$((used + spare))k tmpfs "$folder"
cp -a "$folder.was/." "$folder"; rm -r "$folder.was"
exec "$@"
"""
_MOUNT = ["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
HAS_MOUNTS = (
    shutil.which("unshare") is not None
    and subprocess.run(_MOUNT, check=False, capture_output=True).returncode == 0
)


@pytest.mark.skipif(not HAS_MOUNTS, reason="this user may not mount a small disk")
@pytest.mark.parametrize("store_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    ("folder", "spare_kib"),
    [
        pytest.param("jobs", 48, id="adapter of a checkpoint", marks=pytest.mark.slow),
        pytest.param("jobs", 200, id="state of a checkpoint", marks=pytest.mark.slow),
        pytest.param("scratch", 32, id="copy of it", marks=pytest.mark.slow),
        pytest.param("blobs", 8, id="stored adapter"),
    ],
)
def test_full_disk_leaves_nothing_that_can_be_served_and_the_job_goes_on(site, folder, spare_kib):
    job = site.make_job(site.upload(chats(12)), n_epochs=3)
    small = ("unshare", "-rm", "sh", "-c", SMALL_DISK, "sh")
    with site.start(job, *small, str(site.settings.home / folder), str(spare_kib)) as worker:
        _, said = worker.communicate(timeout=120)
    waiting = site.tools.jobs.find(job.id)
    assert worker.returncode != 0
    assert (waiting.status, waiting.error["code"]) == (JobStatus.RUNNING, "disk_full"), said[-2000:]
    for adapter in site.tools.adapters.wanted(NAME):
        assert all(
            site.tools.blobs.exists(f"adapters/{adapter.id}/{name}") for name in ADAPTER_NAMES
        )
    # There is room again.
    site.run_to_end(job)
    check_ended_once(site, job, num_kills=1)


def test_job_whose_budget_is_too_small_fails_before_it_trains(site):
    key = LimitKey(LimitScope.PROJECT, site.project_id)
    LimitRepository(site.tools.database).set(key, monthly_budget=Decimal("0.000001"))
    job = site.make_job(site.upload(chats(12)))
    site.run_to_end(job)
    ended = site.tools.jobs.find(job.id)
    assert (ended.status, ended.error["code"]) == (JobStatus.FAILED, "insufficient_quota")
    assert site.losses(job) == []
    assert site.rows(select(JournalRow)) == []
    assert sum(grant.amount for grant in site.rows(select(GrantRow))) == 0


def test_job_with_bad_data_fails_with_all_that_is_wrong(site):
    good = chats(12)
    good[3]["messages"][1]["role"] = "robot"
    good[7]["messages"] = []
    job = site.make_job(site.upload(good))
    site.run_to_end(job)
    ended = site.tools.jobs.find(job.id)
    assert (ended.status, ended.error["code"]) == (JobStatus.FAILED, "invalid_training_file")
    assert [(p["line"], p["code"]) for p in ended.report["errors"]][:2] == [
        (4, "bad_role"),
        (4, "no_answer"),
    ]
    assert 8 in {problem["line"] for problem in ended.report["errors"]}
