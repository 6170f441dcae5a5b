"""What a runner works with: the store, blobs, model cards, the ledger."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from maas.catalog.catalog import Catalog, load_catalog
from maas.core.clock import Clock
from maas.core.errors import Superseded
from maas.core.settings import Settings
from maas.finetune.charges import TrainingLedger
from maas.ledger.books import Books
from maas.ledger.tariff import Tariff
from maas.serving.jobs.desk import JobDesk
from maas.store.adapters import AdapterRepository, TunedModelRepository
from maas.store.blobs import Blobs, open_blobs
from maas.store.clock import StoreClock
from maas.store.database import Database
from maas.store.deployments import DeploymentRepository
from maas.store.files import FileRepository
from maas.store.job_records import Job, JobChange, JobStatus
from maas.store.jobs import JobRepository
from maas.store.replicas import ReplicaRepository
from maas.store.tenancy import Tenancy, open_tenancy


@dataclass(frozen=True)
class Tools:
    """A runner's tools; each is safe to use from many threads."""

    database: Database
    clock: Clock
    jobs: JobRepository
    files: FileRepository
    adapters: AdapterRepository
    tuned_models: TunedModelRepository
    deployments: DeploymentRepository
    replicas: ReplicaRepository
    tenancy: Tenancy
    blobs: Blobs
    ledger: TrainingLedger
    catalog: Catalog

    def fetch_file(self, job: Job, file_id: str, folder: Path) -> Path:
        """Return a project's file on this machine's disk.

        A job that has its files needs them nowhere else: deleting one, or its expiry, does not
        take it from the job.

        Raises:
            NotFound: It was deleted before the job had it.
        """
        for suffix in (".txt", ".jsonl"):
            here = folder / f"{file_id}{suffix}"
            if here.exists():
                return here
        file = self.files.get(job.project_id, file_id)
        target = folder / f"{file.id}{'.txt' if file.filename.endswith('.txt') else '.jsonl'}"
        folder.mkdir(parents=True, exist_ok=True)
        self.blobs.download(file.blob_key, target)
        return target

    def end(self, desk: JobDesk, ending: JobChange) -> None:
        """End a job and settle its money, both or neither.

        Raises:
            Superseded: The job is not this runner's any more.
        """
        desk.close()
        with self.database.together():
            job = desk.write(ending)
            self.ledger.settle(job)

    def deployments_of(self, model_id: str) -> set[str]:
        """Return the deployments of a model that run, or should."""
        return {
            item.id
            for item in self.deployments.list()
            if item.model_id == model_id and item.deleted_at is None
        }


def end_job(tools: Tools, job: Job, ending: JobChange) -> None:
    """End a job that has no runner and settle its money, both or neither."""
    with tools.database.together():
        ended = tools.jobs.write(job.id, job.attempt, ending)
        tools.ledger.settle(ended)


def remove_run(settings: Settings, job: Job) -> None:
    """Remove what a job worked on, once it is over."""
    if job.status not in {JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED}:
        raise Superseded(f"job {job.id} is {job.status}: it still needs its folder")
    shutil.rmtree(settings.jobs_dir / job.id, ignore_errors=True)


def open_tools(settings: Settings) -> Tools:
    """Open everything a runner works with."""
    database = Database(settings.resolved_database_url, settings.store)
    clock = StoreClock(database)
    tenancy = open_tenancy(database, clock)
    return Tools(
        database=database,
        clock=clock,
        jobs=JobRepository(database, clock),
        files=FileRepository(database, clock),
        adapters=AdapterRepository(database, clock),
        tuned_models=TunedModelRepository(database, clock),
        deployments=DeploymentRepository(database, clock),
        replicas=ReplicaRepository(database, clock),
        tenancy=tenancy,
        blobs=open_blobs(settings),
        ledger=TrainingLedger(database, clock, Books(database, clock), Tariff(database, clock)),
        catalog=load_catalog(settings.models_dir),
    )
