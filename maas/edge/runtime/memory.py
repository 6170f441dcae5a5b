"""How much memory a bundle takes with an engine's options, and whether this machine has it."""

from collections.abc import Callable
from dataclasses import dataclass

import psutil

from maas.core.errors import DoesNotFit
from maas.edge.runtime.bundle.manifest import Manifest
from maas.edge.runtime.engine.options import EngineOptions, kv_bound_bytes

# Over what was measured: requests' bodies, and what another machine's threads take more.
MARGIN = 1.1
_MB = 1e6


@dataclass(frozen=True)
class MemoryNeed:
    """What a process takes that answers with a bundle, at most.

    Attributes:
        model_bytes: Weights, the largest steps there are, the runtime; all but the others.
        kv_bytes: Keys and values of running requests.
        prefix_bytes: Those that are remembered.
        least_kv_bytes: Keys and values that no flag goes below.
    """

    model_bytes: int
    kv_bytes: int = 0
    prefix_bytes: int = 0
    least_kv_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        """Of all."""
        return self.model_bytes + self.kv_bytes + self.prefix_bytes

    def flags_for(self, have_bytes: int) -> str | None:
        """Return the flags with which it fits into some memory; none where none do."""
        room = have_bytes - self.model_bytes
        kv_mb, prefix_mb = (-(-part >> 20) for part in (self.kv_bytes, self.prefix_bytes))
        lower_kv_mb = min(kv_mb, max(room, 0) >> 20)
        if not self.kv_bytes or lower_kv_mb < 1 or lower_kv_mb << 20 < self.least_kv_bytes:
            return None
        lower_prefix_mb = min(prefix_mb, (room >> 20) - lower_kv_mb)
        lowered = [("--prefix-cache-mb", lower_prefix_mb, prefix_mb)]
        lowered += [("--kv-cache-mb", lower_kv_mb, kv_mb)]
        return " ".join(f"{flag} {lower}" for flag, lower, given in lowered if lower < given)


def memory_need(
    model_bytes: int, kv_bytes_per_token: int, max_model_len: int, options: EngineOptions
) -> MemoryNeed:
    """Return what is needed at most.

    Args:
        model_bytes: Measured: a process after the largest steps, keys and values aside.
        kv_bytes_per_token: Of keys and values; 0: the model keeps none.
        max_model_len: The bundle's context.
        options: Of the engine.
    """
    model_bytes = int(model_bytes * MARGIN)
    if not kv_bytes_per_token:
        return MemoryNeed(model_bytes)
    length = min(options.max_model_len or max_model_len, max_model_len)
    most = options.max_num_seqs * length * kv_bytes_per_token
    return MemoryNeed(
        model_bytes,
        min(most, kv_bound_bytes(options, kv_bytes_per_token, max_model_len)),
        options.prefix_cache_bytes,
        min(most, kv_bound_bytes(None, kv_bytes_per_token, max_model_len)),
    )


def need_of(manifest: Manifest, options: EngineOptions) -> MemoryNeed:
    """Return what a bundle needs at most; of an older one, what it needed in its maker's trial."""
    card = manifest.cost_card
    measured, per_token = card.get("ram_model_bytes"), card.get("kv_bytes_per_token")
    if type(measured) is not int or type(per_token) is not int or min(measured, per_token) < 0:
        return MemoryNeed(manifest.ram_required_bytes)
    return memory_need(measured, per_token, manifest.max_model_len, options)


def available_bytes() -> int:
    """Return the memory the machine has left."""
    return psutil.virtual_memory().available


def check_memory(
    manifest: Manifest,
    options: EngineOptions,
    available: Callable[[], int] = available_bytes,
) -> None:
    """Refuse a bundle that this machine has no memory for.

    Raises:
        DoesNotFit: The message has the numbers, and the flags with which it fits.
    """
    need, have = need_of(manifest, options), available()
    if need.total_bytes > have:
        raise DoesNotFit(f"{manifest.name} {refusal(need, have)}")


def refusal(need: MemoryNeed, have_bytes: int, more: str = "") -> str:
    """Say that memory is missing, and what would help.

    Args:
        need: What is needed.
        have_bytes: What could be had.
        more: Said of that.
    """
    parts = ""
    if need.kv_bytes:
        parts = (
            f" (model {need.model_bytes / _MB:.0f}, keys and values {need.kv_bytes / _MB:.0f}, "
            f"remembered prompts {need.prefix_bytes / _MB:.0f})"
        )
    flags = need.flags_for(have_bytes)
    advice = f"it fits with {flags}" if flags else "no flag makes it fit"
    return (
        f"needs {need.total_bytes / _MB:.0f} MB of memory{parts}; "
        f"{have_bytes / _MB:.0f} MB are free{more}: {advice}"
    )
