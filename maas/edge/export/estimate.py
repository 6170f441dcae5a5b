"""What an export needs of the machine, before anything is loaded."""

import math
from dataclasses import dataclass

from maas.catalog.card import ModelCard
from maas.core.errors import DoesNotFit
from maas.edge.export.spec import ShrinkDemand

# The original twice (as it is and rounded), its builder's copy in float32, and the rest.
_BYTES_PER_PARAMETER = 2 + 2 + 4
_OVERHEAD_BYTES = 2 * 2**30
# Recovering: the original, and what is left of it in float32 with gradients and two moments.
_TEACHER_BYTES_PER_PARAMETER, _STUDENT_BYTES_PER_PARAMETER = 2, 4 + 4 + 8
# In so many bytes there are at most so many parameters, at four bits.
_MAX_PARAMETERS_PER_BYTE = 2
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


def export_memory_bytes(card: ModelCard, shrink: ShrinkDemand | None = None) -> int:
    """Return about how much memory an export takes.

    Args:
        card: Of the base.
        shrink: What it loses first; the tuning afterwards can take more than all else.
    """
    needed = card.parameters * _BYTES_PER_PARAMETER
    if shrink is not None and shrink.recover_s:
        wanted = shrink.target_parameters or _MAX_PARAMETERS_PER_BYTE * (
            shrink.target_size_bytes or card.parameters
        )
        num_left = min(wanted, card.parameters)
        recovery = card.parameters * _TEACHER_BYTES_PER_PARAMETER
        needed = max(needed, recovery + num_left * _STUDENT_BYTES_PER_PARAMETER)
    return _OVERHEAD_BYTES + needed


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


def check_export(
    card: ModelCard,
    available_bytes: int,
    disk_free_bytes: int | None = None,
    shrink: ShrinkDemand | None = None,
) -> None:
    """Refuse an export that would run out of memory or disk.

    Args:
        card: Of the base.
        available_bytes: Of memory.
        disk_free_bytes: None where nobody knows.
        shrink: What the model loses first.

    Raises:
        DoesNotFit: The message has the numbers.
    """
    for kind, needed, free in (
        ("memory", export_memory_bytes(card, shrink), available_bytes),
        ("disk", export_disk_bytes(card), disk_free_bytes),
    ):
        if free is not None and needed > free:
            raise DoesNotFit(
                f"exporting {card.id} needs about {needed / _GIB:.1f} GiB of {kind} and "
                f"{free / _GIB:.1f} GiB are free"
            )
