"""What an export needs of the machine, before anything is loaded."""

from maas.catalog.card import ModelCard
from maas.core.errors import DoesNotFit

# The original twice (as it is and rounded), its builder's copy in float32, and the rest.
_BYTES_PER_PARAMETER = 2 + 2 + 4
_OVERHEAD_BYTES = 2 * 2**30
# Merged weights, the builder's cache, the bundle's folder and its file.
_DISK_BYTES_PER_PARAMETER = 2 + 4 + 2 + 2
_GIB = 2**30


def export_memory_bytes(card: ModelCard) -> int:
    """Return about how much memory an export takes."""
    return _OVERHEAD_BYTES + card.parameters * _BYTES_PER_PARAMETER


def export_disk_bytes(card: ModelCard) -> int:
    """Return about how much of the disk an export takes beside the model's own weights."""
    return card.parameters * _DISK_BYTES_PER_PARAMETER


def check_export(card: ModelCard, available_bytes: int, disk_free_bytes: int | None = None) -> None:
    """Refuse an export that would run out of memory or disk.

    Raises:
        DoesNotFit: The message has the numbers.
    """
    for kind, needed, free in (
        ("memory", export_memory_bytes(card), available_bytes),
        ("disk", export_disk_bytes(card), disk_free_bytes),
    ):
        if free is not None and needed > free:
            raise DoesNotFit(
                f"exporting {card.id} needs about {needed / _GIB:.1f} GiB of {kind} and "
                f"{free / _GIB:.1f} GiB are free"
            )
