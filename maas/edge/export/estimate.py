"""What an export needs of the machine, before anything is loaded."""

import math
from dataclasses import dataclass

from maas.catalog.card import ModelCard
from maas.core.errors import DoesNotFit

# The original twice (as it is and rounded), its builder's copy in float32, and the rest.
_BYTES_PER_PARAMETER = 2 + 2 + 4
_OVERHEAD_BYTES = 2 * 2**30
# Merged weights, the builder's cache, the bundle's folder and its file.
_DISK_BYTES_PER_PARAMETER = 2 + 4 + 2 + 2
_GIB = 2**30
# Seconds of two cores: a start, and for each billion of parameters; SmolLM2-135M takes 210 at int4.
_START_S = 20.0
_SECONDS_PER_BILLION = {"int4": 1400.0, "int8": 1000.0, "fp16": 500.0}
# Asking original and bundle once more.
_ADAPTER_SECONDS_PER_BILLION = 400.0
# Cores differ, and settings are tried until one is good enough.
_MOST_FACTOR = 3.0


@dataclass(frozen=True)
class Seconds:
    """What an export may take: about, and at most as far as money goes."""

    likely: float
    most: float


def export_memory_bytes(card: ModelCard) -> int:
    """Return about how much memory an export takes."""
    return _OVERHEAD_BYTES + card.parameters * _BYTES_PER_PARAMETER


def export_disk_bytes(card: ModelCard) -> int:
    """Return about how much of the disk an export takes beside the model's own weights."""
    return card.parameters * _DISK_BYTES_PER_PARAMETER


def export_seconds(
    card: ModelCard, precision: str, *, num_adapters: int = 0, recover_s: float = 0.0
) -> Seconds:
    """Return how long an export takes, roughly, and how long one is charged for at most.

    Args:
        card: Of the base.
        precision: ``int4``, ``int8`` or ``fp16``.
        num_adapters: Chosen at run time.
        recover_s: Of tuning after it was shrunk.
    """
    billions = card.parameters / 1e9
    rate = _SECONDS_PER_BILLION[precision] + num_adapters * _ADAPTER_SECONDS_PER_BILLION
    likely = _START_S + billions * rate
    most = _MOST_FACTOR * likely + recover_s
    return Seconds(float(round(likely + recover_s)), float(math.ceil(most)))


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
