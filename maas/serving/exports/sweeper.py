"""Takes away the bytes of bundles that were deleted, or that no export ended with."""

from dataclasses import dataclass

from maas.serving.exports.maker import BUNDLES
from maas.store.blobs import Blobs
from maas.store.bundles import BundleRepository

# An export stores the bytes before it writes the bundle down.
KEPT_S = 3600.0


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
