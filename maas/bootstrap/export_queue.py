"""The controller's part in exports: their queue, put together."""

from functools import partial

from maas.bootstrap.signing import make_signing
from maas.bootstrap.store import Store
from maas.catalog.catalog import load_catalog
from maas.catalog.machine import probe_machine
from maas.core.settings import Settings
from maas.edge.export.charges import ExportLedger
from maas.ledger.books import Books
from maas.ledger.tariff import Tariff
from maas.serving.exports.maker import BundleMaker
from maas.serving.exports.queue import ExportQueue
from maas.store.blobs import open_blobs
from maas.store.exports import ExportRepository
from maas.store.job_records import JobStatus


def make_export_queue(settings: Settings, store: Store) -> ExportQueue:
    """Put the queue of exports together."""

    def num_training() -> int:
        return sum(job.status is JobStatus.RUNNING for job in store.jobs.unfinished())

    maker = BundleMaker(
        settings=settings,
        catalog=load_catalog(settings.models_dir),
        tuned_models=store.tuned_models,
        blobs=open_blobs(settings),
        probe=partial(probe_machine, settings.weights_dir),
        num_training=num_training,
        signing_key=make_signing(settings, store).private_key,
    )
    database, clock = store.database, store.clock
    ledger = ExportLedger(database, clock, Books(database, clock), Tariff(database, clock))
    return ExportQueue(ExportRepository(database, clock), maker, clock=clock, ends=ledger)
