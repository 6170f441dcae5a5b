"""Takes away what nobody needs: files that are deleted or expired, parts, orphans, run folders.

Bytes are written before their row and removed before it, so whoever is killed in between leaves
a blob without a row or a row without a blob: the first is an orphan, found by its age; the second
is removed again. Nothing is lost for ever and nothing is kept for ever.
"""

import asyncio
import logging
import shutil
from pathlib import Path

from maas.core.errors import MaasError
from maas.store.blobs import Blobs
from maas.store.files import FileRepository
from maas.store.jobs import JobRepository
from maas.store.uploads import UploadRepository

log = logging.getLogger(__name__)

EVERY_S = 60.0
AT_ONCE = 1000
# Older than any upload under way.
ORPHANED_AFTER_S = 86_400.0


class Sweeper:
    """Sweeps, again and again.

    Args:
        blobs: Bytes.
        files: Rows of files.
        uploads: Rows of uploads and their parts.
        jobs: Says which run folders are done with.
        jobs_dir: Where run folders are.
    """

    def __init__(
        self,
        blobs: Blobs,
        *,
        files: FileRepository,
        uploads: UploadRepository,
        jobs: JobRepository,
        jobs_dir: Path,
    ) -> None:
        self._blobs = blobs
        self._files = files
        self._uploads = uploads
        self._jobs = jobs
        self._jobs_dir = jobs_dir

    async def run(self, interval_s: float = EVERY_S) -> None:
        """Sweep until cancelled; a sweep that fails does not keep the next from its turn."""
        while True:
            try:
                await asyncio.to_thread(self.sweep)
            except (MaasError, OSError) as error:
                log.error("a sweep failed, the next one tries again: %s", error)
            await asyncio.sleep(interval_s)

    def sweep(self) -> None:
        """Take away all that is not needed any more."""
        for file in self._files.gone(AT_ONCE):
            self._blobs.delete(file.blob_key)
            self._files.mark_removed(file.id)
        for upload_id in self._uploads.over(AT_ONCE):
            self._blobs.delete(f"uploads/{upload_id}")
            self._uploads.forget_parts(upload_id)
        self._sweep_orphans()
        self._blobs.sweep()
        self._sweep_runs()

    def _sweep_orphans(self) -> None:
        old = [key for key, age_s in self._blobs.keys("files") if age_s > ORPHANED_AFTER_S]
        known = self._files.kept([key.rsplit("/", 1)[-1] for key in old])
        for key in old:
            if key.rsplit("/", 1)[-1] not in known:
                log.warning("removing the orphan %s", key)
                self._blobs.delete(key)

    def _sweep_runs(self) -> None:
        if not self._jobs_dir.is_dir():
            return
        for folder in self._jobs_dir.iterdir():
            job = self._jobs.find(folder.name)
            # Its runner may be in its last breath, and write there.
            is_done = job is None or (job.is_over and job.runner_seen_at is None)
            if is_done:
                shutil.rmtree(folder, ignore_errors=True)
