"""Whether training has room beside serving, and when it must make room for it.

Serving goes first. A job starts when no deployment is starting and the memory it needs is free;
it yields (checkpoint, stop, wait) when a deployment is refused that would fit without it. On
processors it also runs at the lowest priority, so an engine that has requests gets the cores.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from maas.catalog.card import ModelCard
from maas.catalog.fit import DTYPE_BYTES
from maas.catalog.machine import Machine
from maas.core.errors import ConfigError, DoesNotFit
from maas.serving.plan import make_plan
from maas.store.job_records import Job
from maas.store.records import Deployment, DeploymentStatus

# Ray Train's own processes and one worker's code, measured with a 135M model.
OVERHEAD_BYTES = 3 * 2**30
# Weights in float32, gradients, and the two moments of Adam.
FULL_BYTES_PER_PARAMETER = 16
_COMING_UP = frozenset({DeploymentStatus.PENDING, DeploymentStatus.STARTING})
_GIB = 2**30


def training_bytes(
    card: ModelCard, *, is_full: bool, num_workers: int = 1, is_split: bool = False
) -> int:
    """Return about how much memory training takes, activations left out: they are cut to fit.

    Args:
        card: Of the base.
        is_full: Whether all weights are tuned.
        num_workers: On this machine.
        is_split: Whether each worker holds a part of the weights only.
    """
    per_parameter = FULL_BYTES_PER_PARAMETER if is_full else DTYPE_BYTES[card.dtype] * 2
    num_copies = 1 if is_split else num_workers
    return num_workers * OVERHEAD_BYTES + num_copies * card.parameters * per_parameter


@dataclasses.dataclass(frozen=True)
class Room:
    """Decides by what the machine and the deployments are now.

    Attributes:
        cards: Model cards, by id.
        probe: Reads this machine.
        deployments: Reads what should be served.
        free_gpus: GPUs of the cluster that nobody holds.
        max_running: Jobs that train at a time.
        num_workers: Of one job.
        is_split: Whether each of them holds a part of the weights only.
        is_one_machine: Whether memory is this machine's to count; else the placement decides.
    """

    cards: Mapping[str, ModelCard]
    probe: Callable[[], Machine]
    deployments: Callable[[], Sequence[Deployment]]
    free_gpus: Callable[[], int]
    max_running: int
    num_workers: int
    is_split: bool = False
    is_one_machine: bool = True

    def refuse(self, job: Job, *, num_running: int) -> str | None:
        """Return why a job cannot start now; nothing if it can."""
        if num_running >= self.max_running:
            return f"Waiting for its turn: {num_running} of {self.max_running} jobs train"
        if any(item.status in _COMING_UP for item in self.deployments()):
            return "Waiting for a deployment that starts"
        card = self.cards.get(job.base_model_id)
        if card is None or not self.is_one_machine:
            return None
        if job.is_publishing:
            return None
        machine = self.probe()
        if machine.gpus:
            num_free = self.free_gpus()
            if num_free < self.num_workers:
                return f"Waiting for GPUs: {num_free} of {self.num_workers} are free"
            return None
        needed = self._needed_bytes(card, job)
        if needed > machine.memory_available_bytes:
            return f"Waiting for memory: it needs {needed / _GIB:.1f} GiB"
        return None

    def must_yield(self, running: tuple[Job, ...]) -> str | None:
        """Return for what the jobs that train must make room; nothing if they need not."""
        refused = [item for item in self.deployments() if item.status is DeploymentStatus.REFUSED]
        if not refused or not self.is_one_machine:
            return None
        machine = self.probe()
        held = sum(
            self._needed_bytes(self.cards[job.base_model_id], job)
            for job in running
            if job.base_model_id in self.cards and not job.is_publishing
        )
        without_us = dataclasses.replace(
            machine, memory_available_bytes=machine.memory_available_bytes + held
        )
        for deployment in refused:
            card = self.cards.get(deployment.card_id)
            if card is None or self._fits(deployment, card, machine):
                continue
            if self._fits(deployment, card, without_us):
                return f"deployment {deployment.id} needs the memory"
        return None

    def _needed_bytes(self, card: ModelCard, job: Job) -> int:
        return training_bytes(
            card,
            is_full=job.recipe == "full",
            num_workers=self.num_workers,
            is_split=self.is_split,
        )

    @staticmethod
    def _fits(deployment: Deployment, card: ModelCard, machine: Machine) -> bool:
        try:
            make_plan(deployment, card, machine, num_to_fit=deployment.min_replicas)
        except DoesNotFit:
            return False
        except ConfigError:
            # Refused for another reason: no memory helps.
            return True
        return True
