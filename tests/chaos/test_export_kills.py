"""An export whose controller, or whose own process, is killed: one bundle, one charge, no rest."""

import os
import random
import signal
import subprocess
import sys
import time
from decimal import Decimal
from pathlib import Path

import psutil
import pytest
import yaml
from sqlalchemy import select

from maas.bootstrap.prices import card_prices
from maas.bootstrap.store import save_settings
from maas.catalog.catalog import load_catalog
from maas.core.settings import Settings
from maas.edge.export.charges import ExportLedger, Seconds
from maas.edge.runtime.bundle.archive import verify
from maas.ledger.books import Books
from maas.ledger.tariff import Tariff
from maas.serving.exports.sweeper import ScratchSweeper
from maas.store.blobs import open_blobs
from maas.store.bundles import BundleRepository
from maas.store.clock import StoreClock
from maas.store.database import Database
from maas.store.edge_tables import BundleRow, ExportEventRow
from maas.store.export_records import Export, ExportStatus, NewExport
from maas.store.exports import ExportRepository
from maas.store.ledger_tables import CounterRow, GrantRow, JournalRow, SpenderRow
from maas.store.limits import LimitKey, LimitRepository
from maas.store.records import LimitScope
from maas.store.state import ensure_project
from tests.conftest import REPOSITORY
from tests.tiny import NAME, write_card
from tests.unit.edge.conftest import write_tiny_weights

PRICE = Decimal("0.01")


class Site:
    """A home, its store, and exports in it."""

    def __init__(self, home: Path, url: str) -> None:
        (home / "weights").mkdir()
        write_tiny_weights(home / "weights")
        write_card(home / "cards", home / "weights")
        path = home / "cards" / f"{NAME}.yaml"
        card = yaml.safe_load(path.read_text())
        path.write_text(yaml.safe_dump(card | {"price": {"export_second": str(PRICE)}}))
        self.settings = Settings(home=home, database_url=url, models_dir=home / "cards")
        self.file = save_settings(self.settings)
        self.database = Database(url)
        self.clock = StoreClock(self.database)
        self.exports = ExportRepository(self.database, self.clock)
        tariff = Tariff(self.database, self.clock)
        tariff.sync(card_prices(load_catalog(home / "cards")))
        books = Books(self.database, self.clock)
        self.ledger = ExportLedger(self.database, self.clock, books, tariff)
        self.project_id = ensure_project(self.database, self.clock)
        LimitRepository(self.database).set(
            LimitKey(LimitScope.PROJECT, self.project_id), monthly_budget=Decimal(100)
        )

    def ask(self) -> Export:
        new = NewExport(
            self.project_id, "key", "req", NAME, NAME, name="tiny", target="cpu", precision="int8",
            # Random weights: whatever they keep is enough.
            quality={"min_score_percent": 0.0},
        )  # fmt: skip
        return self.ledger.create(new, Seconds(60.0, 3600.0))

    def start(self, kind: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.export_worker", str(self.file), kind],
            cwd=REPOSITORY,
            env={**os.environ, "PYTHONWARNINGS": "ignore"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run_to_end(self, kind: str, timeout_s: float) -> None:
        with self.start(kind) as worker:
            _, said = worker.communicate(timeout=timeout_s)
        assert worker.returncode == 0, said[-2000:]

    def now(self, export: Export) -> Export:
        return self.exports.get(self.project_id, export.id)

    def wait_taken(self, export: Export, attempt: int, worker: subprocess.Popen[str]) -> None:
        while self.now(export).attempt == attempt and worker.poll() is None:
            time.sleep(0.02)

    def rows(self, statement):
        with self.database.read() as session:
            return list(session.scalars(statement))

    def check_ended_once(self, export: Export) -> None:
        ended = self.now(export)
        assert ended.status is ExportStatus.SUCCEEDED, ended.error
        told = self.rows(select(ExportEventRow.key).where(ExportEventRow.export_id == export.id))
        assert told.count("terminal") == 1
        bundles = self.rows(select(BundleRow))
        assert [bundle.id for bundle in bundles] == [ended.bundle_id]
        (charge,) = self.rows(select(JournalRow))
        assert charge.id == export.id
        assert charge.export_milliseconds == int(ended.used_s * 1000) > 0
        assert charge.amount == charge.export_milliseconds * PRICE / 1000
        # What was held is given back, and the counter is what the journal says.
        assert self.rows(select(GrantRow)) == self.rows(select(SpenderRow)) == []
        budget = [row for row in self.rows(select(CounterRow)) if row.key.startswith("monthly")]
        assert [(row.used, row.leased) for row in budget] == [(int(charge.amount * 10**9), 0)]
        scratch = self.settings.home / "scratch"
        ScratchSweeper(self.exports, scratch).sweep()
        assert list(scratch.glob("export-*")) == []
        # The bytes are there and whole.
        blobs, target = open_blobs(self.settings), self.settings.home / "pulled.maas"
        blobs.download(bundles[0].blob_key, target)
        assert verify(target, None).manifest.bundle_id == ended.bundle_id
        assert BundleRepository(self.database, self.clock).blob_keys() == {bundles[0].blob_key}


@pytest.fixture
def site(store_url: str, tmp_path: Path):
    made = Site(tmp_path, store_url)
    yield made
    made.database.close()


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("store_url", "num_kills"),
    [("sqlite", 1), pytest.param("postgres", 5, marks=pytest.mark.slow)],
    indirect=["store_url"],
)
def test_export_whose_controller_is_killed_at_random_ends_once_and_is_charged_once(
    site: Site, num_kills: int
) -> None:
    export, drawn = site.ask(), random.Random(11)
    for _ in range(num_kills):
        before = site.now(export)
        if before.status is ExportStatus.SUCCEEDED:
            break
        with site.start("short") as worker:
            site.wait_taken(export, before.attempt, worker)
            time.sleep(drawn.uniform(0.0, 0.9))
            worker.send_signal(signal.SIGKILL)
    site.run_to_end("short", 120)
    assert site.now(export).attempt > 1
    site.check_ended_once(export)


def children_of(worker: subprocess.Popen[str]) -> list[psutil.Process]:
    """Return the export's own process, and what it started, as soon as there is any."""
    while worker.poll() is None:
        found = psutil.Process(worker.pid).children(recursive=True)
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError("the worker ended")


def gone(processes: list[psutil.Process]) -> bool:
    return not psutil.wait_procs(processes, timeout=10)[1]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("store_url", ["sqlite"], indirect=True)
def test_real_export_whose_process_and_then_controller_are_killed_begins_again(site: Site) -> None:
    export = site.ask()
    with site.start("real") as worker:
        first = children_of(worker)
        time.sleep(3)
        os.kill(first[0].pid, signal.SIGKILL)
        assert gone(first)
        site.wait_taken(export, site.now(export).attempt, worker)
        # In the second attempt wait for the builder: a process that the export's own started.
        deadline = time.monotonic() + 240
        while time.monotonic() < deadline:
            running = psutil.Process(worker.pid).children(recursive=True)
            if len(running) > 1:
                break
            time.sleep(0.05)
        assert len(running) > 1
        worker.send_signal(signal.SIGKILL)
    assert gone(running), "nothing runs on without its controller"
    assert site.now(export).status is ExportStatus.RUNNING
    site.run_to_end("real", 400)
    assert site.now(export).num_failures == 2
    site.check_ended_once(export)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("store_url", ["sqlite"], indirect=True)
def test_real_export_that_is_cancelled_ends_all_its_processes_and_costs_its_seconds(
    site: Site,
) -> None:
    export = site.ask()
    with site.start("real") as worker:
        children_of(worker)
        time.sleep(4)
        running = psutil.Process(worker.pid).children(recursive=True)
        ended = site.ledger.cancel(site.project_id, export.id)
        assert gone(running)
        worker.wait(30)
    (charge,) = site.rows(select(JournalRow))
    assert 2000 < charge.export_milliseconds == int(ended.used_s * 1000)
    assert is_swept(site)


def is_swept(site: Site) -> bool:
    return not list((site.settings.home / "scratch").glob("export-*"))
