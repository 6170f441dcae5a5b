"""The controller's part in fine-tuning: the queue, put together."""

from collections.abc import Callable
from dataclasses import dataclass

from maas.catalog.catalog import load_catalog
from maas.catalog.machine import probe_machine
from maas.core.settings import Settings
from maas.finetune.recipe import load_recipes
from maas.serving.exports.maker import SCRATCH
from maas.serving.exports.sweeper import BundleSweeper, ScratchSweeper
from maas.serving.jobs.queue import JobQueue, Runners
from maas.serving.jobs.room import Room
from maas.serving.jobs.sweeper import AdapterSweeper, RunSweeper, WeightsSweeper
from maas.serving.jobs.tools import Tools, end_job, open_tools
from maas.store.adapter_removal import AdapterRemoval
from maas.store.bundles import BundleRepository
from maas.store.exports import ExportRepository
from maas.store.job_records import Job, JobChange
from maas.store.records import Priority

_RANKS = {Priority.ONLINE: 0, Priority.BATCH: 1, Priority.BACKGROUND: 2}


@dataclass(frozen=True)
class QueuePolicy:
    """Whose turn it is, and whether there is room.

    Attributes:
        tools: Store and ledger.
        room: Of this machine or cluster.
    """

    tools: Tools
    room: Room

    def rank(self, job: Job) -> int:
        """Return the place of a job's kind in the queue: the lowest first."""
        return _RANKS[self.tools.tenancy.projects.get(job.project_id).priority]

    def refuse(self, job: Job, *, num_running: int) -> str | None:
        """Return why a job cannot start now; nothing if it can."""
        return self.room.refuse(job, num_running=num_running)

    def must_yield(self, running: tuple[Job, ...]) -> str | None:
        """Return for what the jobs that train must make room; nothing if they need not."""
        return self.room.must_yield(running)

    def give_up(self, job: Job, ending: JobChange) -> None:
        """End a job whose runners keep failing, in one transaction with its money."""
        end_job(self.tools, job, ending)


def make_queue(settings: Settings, runners: Runners, free_gpus: Callable[[], int]) -> JobQueue:
    """Put the queue of jobs together.

    Args:
        settings: The platform's.
        runners: Where they run.
        free_gpus: GPUs of the cluster that nobody holds.
    """
    tools = open_tools(settings)
    room = Room(
        cards=load_catalog(settings.models_dir),
        probe=lambda: probe_machine(settings.weights_dir),
        deployments=tools.deployments.list,
        free_gpus=free_gpus,
        max_running=settings.finetune.max_running_jobs,
        num_workers=settings.finetune.num_workers,
        is_split=settings.finetune.strategy == "fsdp",
        full_recipes=frozenset(
            recipe.name
            for recipe in load_recipes(settings.finetune.recipes_dir).values()
            if recipe.tuning == "full"
        ),
        is_one_machine=settings.serving.ray_address is None,
    )
    return JobQueue(
        tools.jobs,
        runners,
        policy=QueuePolicy(tools, room),
        clock=tools.clock,
        settings=settings.finetune,
    )


def make_sweeps(settings: Settings) -> tuple[Callable[[], None], ...]:
    """Put together what takes away what jobs, and models that were deleted, leave behind."""
    tools = open_tools(settings)
    exports = ExportRepository(tools.database, tools.clock)
    removal = AdapterRemoval(tools.database, tools.clock)
    return (
        RunSweeper(tools.jobs, settings.jobs_dir).sweep,
        WeightsSweeper(tools.tuned_models, tools.blobs, settings.tuned_weights_dir).sweep,
        AdapterSweeper(removal, tools.blobs, settings.adapters_dir).sweep,
        BundleSweeper(BundleRepository(tools.database, tools.clock), tools.blobs).sweep,
        ScratchSweeper(exports, settings.home / SCRATCH).sweep,
    )
