"""An export has one runner, and ends once, with its bundle or without."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import select

from maas.core.errors import Conflict, MaasError, NotFound, Superseded
from maas.store.bundles import BundleRepository
from maas.store.export_records import ExportStatus, MadeBundle, NewExport
from maas.store.exports import ExportRepository
from maas.store.pages import Window
from maas.store.state import ensure_project
from maas.store.tenancy_tables import ProjectRow
from maas.store.webhook_tables import DeliveryRow
from maas.store.webhooks import WebhookRepository

MADE = MadeBundle(
    id="ab" * 32, name="m-int4", blob_key="bundles/ab", size_bytes=7, manifest={"name": "m-int4"}
)


@pytest.fixture
def exports(database, clock):
    return ExportRepository(database, clock)


@pytest.fixture
def bundles(database, clock):
    return BundleRepository(database, clock)


@pytest.fixture
def project_id(database, clock):
    return ensure_project(database, clock)


@pytest.fixture
def queued(exports, project_id):
    return exports.create(
        NewExport(
            project_id=project_id,
            key_id="key",
            request_id="req",
            model_id="m",
            base_model_id="m",
            name="m-int4",
            target="cpu",
            precision="int4",
            labels={"team": "a"},
        )
    )


@pytest.fixture
def running(exports, queued):
    return exports.take(queued.id, seen_attempt=0)


def told(exports, export) -> list[str]:
    page = exports.events(export.project_id, export.id, Window(limit=100))
    return [event.key for event in page.items]


def test_export_is_found_again_as_it_was_asked_for(exports, queued):
    assert exports.get(queued.project_id, queued.id) == queued
    assert queued.status is ExportStatus.QUEUED
    assert queued.labels == {"team": "a"}
    assert [item.id for item in exports.list(queued.project_id, Window()).items] == [queued.id]
    assert exports.count_unfinished(queued.project_id) == 1


def test_another_project_sees_neither_export_nor_bundle(exports, bundles, running):
    exports.succeed(running.id, running.attempt, MADE)
    for read in (
        lambda: exports.get("proj-other", running.id),
        lambda: exports.events("proj-other", running.id, Window()),
        lambda: exports.cancel("proj-other", running.id),
        lambda: bundles.get("proj-other", MADE.id),
        lambda: bundles.delete("proj-other", MADE.id),
    ):
        with pytest.raises(NotFound):
            read()
    assert not bundles.list("proj-other", Window()).items


def test_two_that_take_an_export_at_once_are_one_runner(exports, queued):
    def take(_: int) -> bool:
        try:
            exports.take(queued.id, seen_attempt=0)
        except Superseded:
            return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(take, range(8))) == 1


def test_older_runner_neither_writes_nor_ends_it(exports, bundles, running):
    exports.failed_once(running.id, running.attempt, retry_at=0.0, reason="killed")
    newer = exports.take(running.id, seen_attempt=running.attempt)
    for write in (
        lambda: exports.write(running.id, running.attempt, {"phase": "build", "percent": 1}),
        lambda: exports.succeed(running.id, running.attempt, MADE),
        lambda: exports.fail(running.id, running.attempt, {"message": "no"}),
    ):
        with pytest.raises(Superseded):
            write()
    assert not bundles.list(running.project_id, Window()).items
    assert exports.succeed(newer.id, newer.attempt, MADE).bundle_id == MADE.id


def test_bundle_and_end_are_written_together(exports, bundles, running):
    ended = exports.succeed(running.id, running.attempt, MADE)
    assert ended.status is ExportStatus.SUCCEEDED
    assert bundles.get(running.project_id, MADE.id).manifest == MADE.manifest
    with pytest.raises(Superseded):
        exports.succeed(running.id, running.attempt, MADE)
    assert len(bundles.list(running.project_id, Window()).items) == 1
    assert not exports.unfinished()


def test_what_fails_in_the_same_transaction_leaves_neither_bundle_nor_end(
    database, exports, bundles, running
):
    def end_and_fail() -> None:
        with database.together():
            exports.succeed(running.id, running.attempt, MADE)
            raise MaasError("the charge failed")

    with pytest.raises(MaasError, match="the charge failed"):
        end_and_fail()
    assert not bundles.list(running.project_id, Window()).items
    assert exports.get(running.project_id, running.id).status is ExportStatus.RUNNING


def test_cancelled_export_refuses_its_runner_and_stays_cancelled(exports, bundles, running):
    assert exports.cancel(running.project_id, running.id).status is ExportStatus.CANCELLED
    with pytest.raises(Superseded):
        exports.write(running.id, running.attempt, {"phase": "build", "percent": 50})
    with pytest.raises(Superseded):
        exports.succeed(running.id, running.attempt, MADE)
    again = exports.cancel(running.project_id, running.id)
    assert again.status is ExportStatus.CANCELLED
    assert told(exports, again) == ["created", "started", "terminal"]
    assert not bundles.list(running.project_id, Window()).items


def test_export_that_is_over_cannot_be_cancelled(exports, running):
    exports.fail(running.id, running.attempt, {"code": "bundle_refused", "message": "keeps 61 %"})
    with pytest.raises(Conflict, match="is failed"):
        exports.cancel(running.project_id, running.id)


def test_phase_is_told_once_however_often_a_runner_begins_again(exports, running):
    for percent in (1, 2):
        exports.write(running.id, running.attempt, {"phase": "build", "percent": percent})
    exports.failed_once(running.id, running.attempt, retry_at=5.0, reason="killed")
    newer = exports.take(running.id, seen_attempt=running.attempt)
    moved = exports.write(newer.id, newer.attempt, {"phase": "build", "percent": 3})
    assert moved.progress == {"phase": "build", "percent": 3}
    assert moved.num_failures == 1
    assert told(exports, moved) == ["created", "started", "phase:build", f"ended:{running.attempt}"]


def test_a_reason_to_wait_is_told_once_however_its_numbers_change(exports, queued, clock):
    for reason in (
        "needs about 3.0 GiB of memory and 2.9 GiB are free",
        "needs about 3.0 GiB of memory and 1.25 GiB are free",
        "a job trains on this machine",
        "needs about 3.0 GiB of memory and 2.9 GiB are free",
    ):
        clock.advance(1)
        exports.wait(queued.id, queued.attempt, reason)
    page = exports.events(queued.project_id, queued.id, Window(limit=100))
    assert [event.message for event in page.items] == [
        f"Created export: {queued.id}",
        "needs about 3.0 GiB of memory and 2.9 GiB are free",
        "a job trains on this machine",
    ]
    exports.cancel(queued.project_id, queued.id)
    with pytest.raises(Superseded):
        exports.wait(queued.id, queued.attempt, "another reason")


def test_deleted_bundle_is_gone(exports, bundles, running):
    exports.succeed(running.id, running.attempt, MADE)
    bundles.delete(running.project_id, MADE.id)
    with pytest.raises(NotFound):
        bundles.get(running.project_id, MADE.id)


def test_deleted_bundle_that_is_made_again_is_there_again(exports, bundles, running, project_id):
    exports.succeed(running.id, running.attempt, MADE)
    bundles.delete(project_id, MADE.id)
    again = exports.create(
        NewExport(project_id, "key", "req", "m", "m", name="m-int4", target="cpu", precision="int4")
    )
    taken = exports.take(again.id, seen_attempt=0)
    exports.succeed(taken.id, taken.attempt, MADE)
    assert bundles.get(project_id, MADE.id).deleted_at is None


def test_only_the_last_runners_seconds_count_and_silence_does_not(exports, running, clock):
    clock.advance(2)
    exports.write(running.id, running.attempt)
    assert exports.get(running.project_id, running.id).used_s == pytest.approx(2)
    clock.advance(31)
    exports.failed_once(running.id, running.attempt, retry_at=0.0, reason="it went silent")
    clock.advance(100)
    newer = exports.take(running.id, seen_attempt=running.attempt)
    assert newer.used_s == 0
    clock.advance(3)
    exports.write(newer.id, newer.attempt)
    clock.advance(1)
    assert exports.succeed(newer.id, newer.attempt, MADE).used_s == pytest.approx(4)


def test_a_cancel_long_after_its_runner_died_counts_little_of_the_silence(exports, running, clock):
    clock.advance(1000)
    assert exports.cancel(running.project_id, running.id).used_s <= 5


def test_an_attempt_is_current_until_another_takes_it_or_it_ends(exports, running):
    assert exports.is_current(running.id, running.attempt)
    exports.failed_once(running.id, running.attempt, retry_at=0.0, reason="killed")
    newer = exports.take(running.id, seen_attempt=running.attempt)
    assert not exports.is_current(running.id, running.attempt)
    exports.succeed(newer.id, newer.attempt, MADE)
    assert exports.is_current(newer.id, newer.attempt) is False
    assert exports.is_current("export-unknown", 1) is None


@pytest.mark.parametrize("end", ["succeeded", "failed", "cancelled"])
def test_its_end_is_told_to_webhooks_once(exports, running, database, clock, end):
    with database.read() as session:
        organization_id = session.get_one(ProjectRow, running.project_id).organization_id
    hooks = WebhookRepository(database, clock, str)
    hooks.create(organization_id, name=end, url="http://127.0.0.1:9/", events=(f"export.{end}",))
    if end == "succeeded":
        exports.succeed(running.id, running.attempt, MADE)
    elif end == "failed":
        exports.fail(running.id, running.attempt, {"code": "x", "message": "m", "param": None})
    else:
        exports.cancel(running.project_id, running.id)
        exports.cancel(running.project_id, running.id)
    with database.read() as session:
        bodies = [json.loads(row.body) for row in session.scalars(select(DeliveryRow))]
    assert [(b["type"], b["data"]) for b in bodies] == [(f"export.{end}", {"id": running.id})]
