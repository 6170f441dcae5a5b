"""Takes away what exports leave: bytes of bundles nobody has, folders of attempts that died."""

import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from maas.serving.exports.maker import BUNDLES
from maas.store.blobs import Blobs
from maas.store.bundles import BundleRepository
from maas.store.exports import ExportRepository

# An export stores the bytes before it writes the bundle down.
KEPT_S = 3600.0
# What ``maas export`` works in without a platform has no row that says whether it lives.
KEPT_UNKNOWN_S = 86_400.0
_ATTEMPT = re.compile(r"(export-[0-9a-z]+)-(\d+)")


@dataclass(frozen=True)
class BundleSweeper:
    """Removes what no bundle needs."""

    bundles: BundleRepository
    blobs: Blobs
    kept_s: float = KEPT_S

    def sweep(self) -> None:
        """Remove it; what is young stays."""
        stored = self.blobs.keys(BUNDLES)
        # Read after the list: what was written down meanwhile is known.
        needed = self.bundles.blob_keys()
        for key, age_s in stored:
            if key not in needed and age_s > self.kept_s:
                self.blobs.delete(key)


@dataclass(frozen=True)
class ScratchSweeper:
    """Removes the folders of attempts at exports that nobody works on any more.

    Attributes:
        folder: Where they are.
    """

    exports: ExportRepository
    folder: Path
    kept_unknown_s: float = KEPT_UNKNOWN_S

    def sweep(self) -> None:
        """Remove them."""
        for path in self.folder.glob("export-*"):
            if not self._is_needed(path):
                shutil.rmtree(path, ignore_errors=True)

    def _is_needed(self, path: Path) -> bool:
        found = _ATTEMPT.fullmatch(path.name)
        current = None if found is None else self.exports.is_current(found[1], int(found[2]))
        if current is not None:
            return current
        try:
            return time.time() - path.stat().st_mtime < self.kept_unknown_s
        except FileNotFoundError:
            return True
