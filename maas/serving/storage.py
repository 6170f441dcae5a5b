"""What keeps the storage of files in order while a controller leads.

Bytes of deleted and expired files go, and those that a crash left without a row; what was kept is
charged. Each step may be done again, by anybody: bytes go before the row says so.
"""

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable, Iterator
from itertools import islice

from maas.core.errors import MaasError
from maas.ledger.storage import StorageLedger
from maas.store.blobs import SPOOL_KEPT_S, Blobs
from maas.store.files import FileRepository
from maas.store.uploads import UploadRepository

log = logging.getLogger(__name__)

_AT_ONCE = 500
# Listing all of a bucket costs money.
_STRAYS_EVERY = 60


class StorageKeeper:
    """Sweeps and charges.

    Args:
        files: Whose bytes may go.
        uploads: Whose parts may go.
        blobs: The bytes.
        ledger: Charges.
        known_weights: Which of some blob folders of whole weights a model has.
    """

    def __init__(
        self,
        files: FileRepository,
        uploads: UploadRepository,
        *,
        blobs: Blobs,
        ledger: StorageLedger,
        known_weights: Callable[[Collection[str]], set[str]],
    ) -> None:
        self._files = files
        self._uploads = uploads
        self._blobs = blobs
        self._ledger = ledger
        self._known_weights = known_weights

    async def run(self, interval_s: float) -> None:
        """Sweep until cancelled; what fails is tried again the next time."""
        num_sweeps = 0
        while True:
            steps = [self._ledger.charge_due, self.remove_gone]
            if num_sweeps % _STRAYS_EVERY == 0:
                steps.append(self.remove_strays)
            for step in steps:
                try:
                    await asyncio.to_thread(step)
                except MaasError as error:
                    log.error("keeping files: %s", error.message)
            num_sweeps += 1
            await asyncio.sleep(interval_s)

    def remove_gone(self) -> int:
        """Remove the bytes of files and uploads that are over; return of how many."""
        num_removed = 0
        while found := self._files.gone(_AT_ONCE):
            for file in found:
                self._blobs.delete(file.blob_key)
                self._files.mark_removed(file.id)
            num_removed += len(found)
        while over := self._uploads.over(_AT_ONCE):
            for upload_id in over:
                self._blobs.delete(f"uploads/{upload_id}")
                self._uploads.forget_parts(upload_id)
            num_removed += len(over)
        return num_removed

    def remove_strays(self) -> int:
        """Remove bytes that have had no row for a day; return of how many blobs."""
        self._blobs.sweep()
        num_removed = 0
        for prefix, known, name_of in (
            ("files", self._files.kept, _last),
            ("uploads", self._uploads.known_parts, _last),
            # A job that was killed while it stored them, and never came back.
            ("weights", self._known_weights, _folder),
        ):
            old = (key for key, age_s in self._blobs.keys(prefix) if age_s > SPOOL_KEPT_S)
            for keys in _portions(old):
                known_here = known({name_of(key) for key in keys})
                for key in (key for key in keys if name_of(key) not in known_here):
                    log.info("removing %s, which nothing knows of", key)
                    self._blobs.delete(key)
                    num_removed += 1
        return num_removed


def _last(key: str) -> str:
    return key.rpartition("/")[2]


def _folder(key: str) -> str:
    return "/".join(key.split("/")[:2])


def _portions(keys: Iterable[str]) -> Iterator[list[str]]:
    rest = iter(keys)
    while portion := list(islice(rest, _AT_ONCE)):
        yield portion
