"""Folders of attempts nobody works on are taken away, and no others."""

import os
import time

from maas.serving.exports.sweeper import ScratchSweeper
from maas.store.export_records import NewExport
from maas.store.exports import ExportRepository
from maas.store.state import ensure_project


def test_folders_of_dead_attempts_go_and_those_at_work_stay(database, clock, tmp_path):
    exports = ExportRepository(database, clock)
    project_id = ensure_project(database, clock)

    def taken():
        new = NewExport(project_id, "k", "r", "m", "m", name="m", target="cpu", precision="int4")
        return exports.take(exports.create(new).id, seen_attempt=0)

    alive, over = taken(), taken()
    exports.cancel(project_id, over.id)
    names = {
        "stays": [f"{alive.id}-{alive.attempt}", "export-m-123", "tmp-of-somebody"],
        "goes": [f"{alive.id}-0", f"{over.id}-{over.attempt}", "export-old-123"],
    }
    scratch = tmp_path / "scratch"
    for name in (*names["stays"], *names["goes"]):
        (scratch / name).mkdir(parents=True)
        (scratch / name / "file").write_text("x")
    day_ago = time.time() - 90_000
    os.utime(scratch / "export-old-123", (day_ago, day_ago))
    ScratchSweeper(exports, scratch).sweep()
    assert {path.name for path in scratch.iterdir()} == set(names["stays"])
    ScratchSweeper(exports, tmp_path / "none").sweep()
