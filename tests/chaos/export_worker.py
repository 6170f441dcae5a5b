"""A controller that does nothing but export, for kills.

python -m tests.chaos.export_worker SETTINGS_FILE real|short
"""

import asyncio
import sys
import time
from collections.abc import Callable
from pathlib import Path

from maas.bootstrap.signing import make_signing
from maas.bootstrap.store import open_store, read_settings
from maas.catalog.catalog import load_catalog
from maas.catalog.machine import Machine
from maas.edge.export.charges import ExportLedger
from maas.edge.export.spec import ExportResult, ExportSpec, Progress
from maas.edge.export.start import run_export
from maas.ledger.books import Books
from maas.ledger.tariff import Tariff
from maas.serving.exports.maker import BundleMaker
from maas.serving.exports.queue import ExportQueue, ExportTimes
from maas.store.blobs import open_blobs
from maas.store.exports import ExportRepository
from tests.api.yard import pack_a_graph

TIMES = ExportTimes(beat_s=0.1, silent_s=1.0, max_failures=100)
ROOMY = Machine(2, 2**36, 2**36, 2**40)


def run_short(spec: ExportSpec, report: Callable[[Progress], None], on_start) -> ExportResult:
    """Stand for the steps: a second of them, then a graph of one product."""
    for percent in range(0, 50, 5):
        time.sleep(0.1)
        report(Progress(phase=f"step-{percent}", percent=percent))
    return pack_a_graph([], spec, report, on_start)


async def main(settings_file: str, kind: str) -> None:
    """Work until nothing is left to do."""
    settings = read_settings(Path(settings_file))
    store = open_store(settings)
    maker = BundleMaker(
        settings=settings,
        catalog=load_catalog(settings.models_dir),
        tuned_models=store.tuned_models,
        blobs=open_blobs(settings),
        probe=lambda: ROOMY,
        num_training=lambda: 0,
        signing_key=make_signing(settings, store).private_key,
        run=run_export if kind == "real" else run_short,
    )
    database, clock = store.database, store.clock
    exports = ExportRepository(database, clock)
    ledger = ExportLedger(database, clock, Books(database, clock), Tariff(database, clock))
    queue = ExportQueue(exports, maker, clock=clock, ends=ledger, times=TIMES)
    while exports.unfinished():
        await queue.step()
        await asyncio.sleep(0.05)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2]))
