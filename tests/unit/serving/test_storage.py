"""Bytes of files that are gone, bytes that nothing knows of, and what keeping files costs."""

import os
import time
from decimal import Decimal
from pathlib import Path

import pytest
from sqlalchemy import select

from maas.core.settings import Settings
from maas.ledger.books import Books, Want
from maas.ledger.caps import Cap, Metric, subject_of
from maas.ledger.prices import Rates
from maas.ledger.storage import DAY_S, StorageLedger
from maas.ledger.tariff import Tariff
from maas.serving.storage import StorageKeeper
from maas.store import blobs as blobs_module
from maas.store.blobs import SPOOL_KEPT_S, Blobs, open_blobs
from maas.store.files import FileRepository, NewFile, blob_key_of, new_file_id
from maas.store.finetune_tables import FileRow, UploadRow
from maas.store.ledger_tables import JournalRow
from maas.store.state import ensure_project
from maas.store.uploads import UploadPart, UploadRepository

MIB = 1 << 20
# Noon of a day in October.
NOON = 20_000 * DAY_S + DAY_S / 2


class Keeping:
    """A storage, its keeper and a project, at a time of the test's own."""

    def __init__(self, database, clock, home: Path) -> None:
        self.database, self.clock = database, clock
        self.blobs: Blobs = open_blobs(Settings(home=home))
        self.files = FileRepository(database, clock)
        self.uploads = UploadRepository(database, clock)
        self.tariff = Tariff(database, clock)
        self.project_id = ensure_project(database, clock)
        self.home = home
        self.restart()

    def restart(self) -> None:
        books = Books(self.database, self.clock)
        self.ledger = StorageLedger(self.database, self.clock, books, self.tariff)
        self.keeper = StorageKeeper(
            self.files,
            self.uploads,
            blobs=self.blobs,
            ledger=self.ledger,
            known_weights=lambda keys: {key for key in keys if key == "weights/known"},
        )

    def add(self, *, size: int = 10, claimed: int | None = None, lifetime_s: int | None = None):
        file_id = new_file_id()
        facts = self.put(blob_key_of(file_id), size)
        return self.files.create(
            NewFile(
                id=file_id,
                project_id=self.project_id,
                filename="f",
                purpose="fine-tune",
                # A test needs no gigabytes to see what they cost.
                size_bytes=claimed or facts.size_bytes,
                sha256=facts.sha256,
                expires_after_s=lifetime_s,
            )
        )

    def put(self, key: str, size: int = 10, *, age_s: float = 0.0) -> blobs_module.BlobFacts:
        incoming = self.blobs.begin()
        incoming.write(b"x" * size)
        facts = self.blobs.put(key, incoming)
        if age_s:
            then = time.time() - age_s
            os.utime(self.home / "blobs" / key, (then, then))
        return facts

    def charges(self) -> list[tuple[str, float, int, Decimal]]:
        with self.database.read() as session:
            rows = session.scalars(select(JournalRow).order_by(JournalRow.at)).all()
            return [(row.project_id, row.at, row.storage_mib_hours, row.amount) for row in rows]


@pytest.fixture
def keeping(database, clock, tmp_path) -> Keeping:
    clock.seconds = NOON
    return Keeping(database, clock, tmp_path)


def test_bytes_of_deleted_and_expired_files_go_and_others_stay(keeping) -> None:
    deleted, expiring, kept = keeping.add(), keeping.add(lifetime_s=3600), keeping.add()
    keeping.files.delete(keeping.project_id, deleted.id)
    assert keeping.keeper.remove_gone() == 1
    keeping.clock.seconds += 3600
    assert keeping.keeper.remove_gone() == 1
    assert keeping.keeper.remove_gone() == 0
    for file, is_kept in ((deleted, False), (expiring, False), (kept, True)):
        assert keeping.blobs.exists(file.blob_key) == is_kept
    with keeping.database.read() as session:
        assert session.get_one(FileRow, expiring.id).deleted_at == expiring.expires_at


def test_bytes_that_are_gone_before_the_row_says_so_are_no_fault(keeping) -> None:
    file = keeping.add()
    keeping.files.delete(keeping.project_id, file.id)
    keeping.blobs.delete(file.blob_key)  # and then it was killed
    assert keeping.keeper.remove_gone() == 1
    assert keeping.files.gone(10) == ()


@pytest.mark.parametrize("ending", ["cancel", "complete", "expire"])
def test_parts_of_an_upload_that_is_over_go(keeping, ending) -> None:
    upload = keeping.uploads.create(
        keeping.project_id,
        filename="f",
        purpose="fine-tune",
        mime_type="text/plain",
        size_bytes=20,
        file_lifetime_s=None,
    )
    for n in range(2):
        facts = keeping.put(f"uploads/{upload.id}/part-{n}")
        part = UploadPart(f"part-{n}", upload.id, facts.size_bytes, facts.sha256, facts.key, 0.0)
        keeping.uploads.add_part(keeping.project_id, part)
    assert keeping.keeper.remove_gone() == 0
    if ending == "expire":
        keeping.clock.seconds += 3600
    else:
        file_id = "file-x" if ending == "complete" else None
        keeping.uploads.finish(keeping.project_id, upload.id, file_id=file_id)
    assert keeping.keeper.remove_gone() == 1
    assert keeping.keeper.remove_gone() == 0
    assert keeping.blobs.keys("uploads") == []
    with keeping.database.read() as session:
        status = session.get_one(UploadRow, upload.id).status
    assert status == {"cancel": "cancelled", "complete": "completed", "expire": "expired"}[ending]


def test_bytes_that_a_crash_left_without_a_row_go_after_a_day(keeping) -> None:
    old = SPOOL_KEPT_S + 60
    keeping.put("files/file-old", age_s=old)
    keeping.put("files/file-young", age_s=SPOOL_KEPT_S - 60)
    keeping.put("uploads/u/part-old", age_s=old)
    file = keeping.add()
    keeping.put(file.blob_key, age_s=old)
    keeping.put("adapters/a/weights", age_s=old)
    for name in ("known", "unknown"):
        keeping.put(f"weights/{name}/part-1", age_s=old)
    keeping.put("weights/unknown/part-2")
    assert keeping.keeper.remove_strays() == 3
    assert not keeping.blobs.exists("weights/unknown/part-1")
    # Somebody stores it just now.
    assert keeping.blobs.exists("weights/unknown/part-2")
    assert keeping.blobs.exists("weights/known/part-1")
    assert keeping.blobs.exists("files/file-young")
    assert keeping.blobs.exists(file.blob_key)
    assert keeping.blobs.exists("adapters/a/weights")


def test_day_is_charged_once_when_it_is_over(keeping) -> None:
    price = Rates(storage_gib_month=Decimal("0.72"))  # a thousandth a gibibyte and hour
    keeping.tariff.override("storage", price, tier="default", currency="USD")
    keeping.add(claimed=1 << 30)
    assert keeping.ledger.charge_due() == 0
    keeping.clock.seconds = NOON + DAY_S / 2 + 60  # midnight is just over
    assert keeping.ledger.charge_due() == 0
    keeping.clock.seconds += 600
    assert keeping.ledger.charge_due() == 1
    for _ in range(2):
        keeping.restart()
        assert keeping.ledger.charge_due() == 0
    [(project_id, at, mib_hours, amount)] = keeping.charges()
    assert (project_id, at) == (keeping.project_id, NOON - DAY_S / 2)
    assert (mib_hours, amount) == (12 * 1024, Decimal("0.012"))


def test_two_controllers_at_once_charge_a_day_once(keeping) -> None:
    keeping.add()
    other = Keeping(keeping.database, keeping.clock, keeping.home)
    keeping.clock.seconds += DAY_S
    entries = [one.ledger._entries(20_000) for one in (keeping, other)]
    books = Books(keeping.database, keeping.clock)
    assert [books.charge(some) for some in entries] == [1, 0]


def test_days_that_nobody_charged_are_charged_later(keeping) -> None:
    file = keeping.add(claimed=1 << 20, lifetime_s=int(2.25 * DAY_S))
    keeping.clock.seconds += 10 * DAY_S
    assert keeping.ledger.charge_due() == 3
    # Half a day, a whole one, three quarters of one.
    assert [mib_hours for _, _, mib_hours, _ in keeping.charges()] == [12, 24, 18]
    keeping.keeper.remove_gone()
    keeping.restart()
    assert keeping.ledger.charge_due() == 0
    assert not keeping.blobs.exists(file.blob_key)


def test_deleted_file_costs_until_it_was_deleted(keeping) -> None:
    file = keeping.add(claimed=4 << 20)
    keeping.clock.seconds += 3600
    keeping.files.delete(keeping.project_id, file.id)
    keeping.keeper.remove_gone()
    keeping.clock.seconds += DAY_S
    keeping.ledger.charge_due()
    assert [mib_hours for _, _, mib_hours, _ in keeping.charges()] == [4]


def test_storage_counts_against_the_budget_of_its_month(keeping) -> None:
    price = Rates(storage_gib_month=Decimal("720"))
    keeping.tariff.override("storage", price, tier="default", currency="USD")
    cap = Cap(Metric.MONTHLY_BUDGET, subject_of("project", keeping.project_id), 10**12)
    keeping.add(claimed=1 << 30)
    keeping.clock.seconds += DAY_S
    keeping.ledger.charge_due()
    books = Books(keeping.database, keeping.clock)
    books.open("s")
    books.grant("s", [Want(cap, cap.window(NOON), 1, 1)])
    key = cap.window(NOON).key
    assert books.used([key]) == {key: 12 * 10**9}


def test_nothing_kept_costs_nothing(keeping) -> None:
    assert keeping.ledger.charge_due() == 0
    assert keeping.charges() == []
