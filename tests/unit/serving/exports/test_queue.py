"""Exports are worked on one at a time, end once, and stop when nobody wants them."""

import asyncio
import subprocess
import sys
import threading
import time

import pytest

from maas.core.errors import AdapterRefused, BuildFailed, BundleRefused, ConfigError, EngineError
from maas.serving.exports.queue import ExportQueue, ExportTimes
from maas.store.bundles import BundleRepository
from maas.store.export_records import ExportStatus, MadeBundle, NewExport
from maas.store.exports import ExportRepository
from maas.store.pages import Window
from maas.store.state import ensure_project

TIMES = ExportTimes(beat_s=0.05, silent_s=30.0, max_failures=2)


class ScriptedMaker:
    """Makes what it is told, or raises it; None is a process that ends only when it is ended."""

    def __init__(self, *outcomes) -> None:
        self.outcomes = list(outcomes)
        self.reason: str | None = None
        self.process: subprocess.Popen[bytes] | None = None
        self.started = threading.Event()

    def refuse(self, _export):
        return self.reason

    def make(self, export, work):
        work.report({"phase": "build", "percent": 40, "message": "building"})
        outcome = self.outcomes.pop(0)
        if outcome is None:
            sleeper = [sys.executable, "-c", "import time; time.sleep(60)"]
            self.process = subprocess.Popen(sleeper)
            work.end_with(self.process.kill)
            self.started.set()
            self.process.wait()
            raise EngineError("the export's process ended: it was killed")
        if isinstance(outcome, Exception):
            raise outcome
        return MadeBundle(outcome * 32, export.name, f"bundles/{outcome}", 3, {"name": "x"})


@pytest.fixture
def exports(database, clock):
    return ExportRepository(database, clock)


@pytest.fixture
def project_id(database, clock):
    return ensure_project(database, clock)


def ask(exports, project_id):
    return exports.create(
        NewExport(project_id, "key", "req", "m", "m", name="m-int4", target="cpu", precision="int4")
    )


def queue_of(exports, maker, clock):
    return ExportQueue(exports, maker, clock=clock, times=TIMES)


def test_export_ends_with_its_bundle(exports, project_id, clock, database):
    export = ask(exports, project_id)
    asyncio.run(queue_of(exports, ScriptedMaker("ab"), clock).step())
    ended = exports.get(project_id, export.id)
    assert ended.status is ExportStatus.SUCCEEDED
    bundle = BundleRepository(database, clock).get(project_id, ended.bundle_id or "")
    assert bundle.blob_key == "bundles/ab"


@pytest.mark.parametrize("kind", [BundleRefused, BuildFailed, ConfigError, AdapterRefused])
def test_what_trying_again_does_not_mend_fails_the_export_at_once(exports, project_id, clock, kind):
    export = ask(exports, project_id)
    maker = ScriptedMaker(kind("keeps 61.0 % of the original's score"))
    asyncio.run(queue_of(exports, maker, clock).step())
    ended = exports.get(project_id, export.id)
    assert ended.status is ExportStatus.FAILED
    assert ended.error is not None
    assert ended.error["code"] == kind.code
    assert "61.0 %" in ended.error["message"]


def test_full_disk_is_a_failed_attempt_and_the_queue_goes_on(exports, project_id, clock):
    export = ask(exports, project_id)
    queue = queue_of(exports, ScriptedMaker(OSError(28, "No space left on device"), "ab"), clock)
    asyncio.run(queue.step())
    assert exports.get(project_id, export.id).num_failures == 1
    clock.advance(61)
    asyncio.run(queue.step())
    assert exports.get(project_id, export.id).status is ExportStatus.SUCCEEDED


def test_process_that_ends_is_given_another_then_given_up(exports, project_id, clock):
    export = ask(exports, project_id)
    queue = queue_of(exports, ScriptedMaker(EngineError("killed"), EngineError("again")), clock)
    asyncio.run(queue.step())
    assert exports.get(project_id, export.id).status is ExportStatus.QUEUED
    asyncio.run(queue.step())
    assert exports.get(project_id, export.id).num_failures == 1, "it waits before it goes again"
    clock.advance(61)
    asyncio.run(queue.step())
    ended = exports.get(project_id, export.id)
    assert ended.status is ExportStatus.FAILED
    assert ended.error is not None
    assert "ended 2 times: again" in ended.error["message"]


def test_cancelled_export_ends_its_process_within_five_seconds(exports, project_id, clock):
    export = ask(exports, project_id)
    maker = ScriptedMaker(None)

    async def cancel_while_it_runs() -> float:
        step = asyncio.create_task(queue_of(exports, maker, clock).step())
        await asyncio.to_thread(maker.started.wait, 10)
        exports.cancel(project_id, export.id)
        began = time.monotonic()
        await step
        return time.monotonic() - began

    assert asyncio.run(asyncio.wait_for(cancel_while_it_runs(), 30)) < 5
    assert maker.process is not None
    assert maker.process.returncode is not None
    assert exports.get(project_id, export.id).status is ExportStatus.CANCELLED


def test_export_of_a_controller_that_died_begins_again_once_it_is_silent(
    exports, project_id, clock, database
):
    export = ask(exports, project_id)
    dead = exports.take(export.id, seen_attempt=0)
    queue = queue_of(exports, ScriptedMaker("ab"), clock)
    asyncio.run(queue.step())
    assert exports.get(project_id, export.id).attempt == dead.attempt, "it may be alive still"
    clock.advance(31)
    asyncio.run(queue.step())
    clock.advance(61)
    asyncio.run(queue.step())
    assert exports.get(project_id, export.id).status is ExportStatus.SUCCEEDED
    assert len(BundleRepository(database, clock).list(project_id, Window()).items) == 1


def test_export_waits_while_there_is_no_room(exports, project_id, clock):
    export = ask(exports, project_id)
    maker = ScriptedMaker("ab")
    maker.reason = "a job trains on this machine"
    for _ in range(2):
        asyncio.run(queue_of(exports, maker, clock).step())
    assert exports.get(project_id, export.id).status is ExportStatus.QUEUED
    told = exports.events(project_id, export.id, Window(limit=100)).items
    assert [event.message for event in told if event.key.startswith("waiting:")] == [maker.reason]
    maker.reason = None
    asyncio.run(queue_of(exports, maker, clock).step())
    assert exports.get(project_id, export.id).status is ExportStatus.SUCCEEDED
