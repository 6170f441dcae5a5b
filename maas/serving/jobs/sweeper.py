"""Takes away what nobody needs: folders of jobs that are over, weights of deleted models."""

import asyncio
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

from maas.core.errors import MaasError
from maas.finetune.registry import blob_key_of
from maas.store.adapter_removal import AdapterRemoval
from maas.store.adapters import TunedModelRepository
from maas.store.blobs import Blobs
from maas.store.jobs import JobRepository

log = logging.getLogger(__name__)

_AT_ONCE = 100


async def keep_sweeping(sweep: Callable[[], None], interval_s: float) -> None:
    """Sweep until cancelled; a sweep that fails does not keep the next from its turn."""
    while True:
        try:
            await asyncio.to_thread(sweep)
        except (MaasError, OSError) as error:
            log.error("a sweep failed, the next one tries again: %s", error)
        await asyncio.sleep(interval_s)


class RunSweeper:
    """Sweeps folders of jobs.

    Args:
        jobs: Says which are over.
        jobs_dir: Where their folders are.
    """

    def __init__(self, jobs: JobRepository, jobs_dir: Path) -> None:
        self._jobs = jobs
        self._jobs_dir = jobs_dir

    def sweep(self) -> None:
        """Remove the folders that no runner needs any more."""
        if not self._jobs_dir.is_dir():
            return
        for folder in self._jobs_dir.iterdir():
            job = self._jobs.find(folder.name)
            if job is None or job.is_over:
                shutil.rmtree(folder, ignore_errors=True)


class WeightsSweeper:
    """Removes the bytes of whole weights that no model needs and no engine reads.

    Args:
        tuned_models: Says which.
        blobs: Where they are stored.
        home: Folder of this machine's copies.
    """

    def __init__(self, tuned_models: TunedModelRepository, blobs: Blobs, home: Path) -> None:
        self._tuned_models = tuned_models
        self._blobs = blobs
        self._home = home

    def sweep(self) -> None:
        """Remove what is not needed; the bytes go before the rows say so."""
        for key in self._tuned_models.unwanted_weights():
            log.info("removing %s", key)
            self._blobs.delete(key)
            name = key.rpartition("/")[2]
            shutil.rmtree(self._home / name, ignore_errors=True)
            (self._home / f".{name}.lock").unlink(missing_ok=True)
            self._tuned_models.forget_weights(key)


class AdapterSweeper:
    """Removes the bytes of adapters that no model needs.

    Args:
        removal: Says which.
        blobs: Where they are stored.
        home: Folder of this machine's copies.
    """

    def __init__(self, removal: AdapterRemoval, blobs: Blobs, home: Path) -> None:
        self._removal = removal
        self._blobs = blobs
        self._home = home

    def sweep(self) -> None:
        """Remove what is not needed; the bytes go before the rows say so."""
        while claimed := self._removal.claim(_AT_ONCE):
            for adapter_id in claimed:
                log.info("removing the adapter %s", adapter_id)
                self._blobs.delete(blob_key_of(adapter_id))
                shutil.rmtree(self._home / adapter_id, ignore_errors=True)
                self._removal.forget(adapter_id)
