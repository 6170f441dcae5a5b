"""Memory for keys and values in pages of the kernel's: there when written, gone when given back.

numpy's own memory would not do: it asks for pages of 2 MiB, of which the first position of each
head of each slot would take one, and what was written once stays until the whole array goes.
"""

import contextlib
import math
import mmap
from typing import Any

import numpy as np
from numpy.typing import NDArray


def rounded_up(size: int, step: int = mmap.PAGESIZE) -> int:
    """Return the least multiple of a step that is not smaller."""
    return -(-size // step) * step


def positions_of_pages(row_bytes: int) -> int:
    """Return the fewest positions, each of so many bytes, that end with a page."""
    return mmap.PAGESIZE // math.gcd(mmap.PAGESIZE, row_bytes)


def zeros_in_pages(shape: tuple[int, ...], dtype: type[np.generic]) -> NDArray[Any]:
    """Return zeros whose memory goes back to the kernel with the array."""
    return np.frombuffer(_pages(shape, dtype), dtype).reshape(shape)


class Slab:
    """Keys, or values, of one layer: zeros, the pages of which can be given back.

    Args:
        shape: (slots, heads, positions, head size); heads end with a page.
        dtype: Of a number.

    Attributes:
        array: Where they are. It never moves: onnxruntime reads it by its address.
    """

    def __init__(self, shape: tuple[int, int, int, int], dtype: type[np.generic]) -> None:
        self._memory = _pages(shape, dtype)
        self.array: NDArray[Any] = np.frombuffer(self._memory, dtype).reshape(shape)

    def give_back(self, slot: int, num_kept: int = 0) -> None:
        """Give back the pages of a slot, which are zeros then.

        Args:
            slot: Whose.
            num_kept: Positions that stay, with the rest of their last page.
        """
        slot_bytes, head_bytes, row_bytes, _ = self.array.strides
        num_heads = self.array.shape[1]
        start = slot * slot_bytes
        if not num_kept:
            self._memory.madvise(mmap.MADV_DONTNEED, start, slot_bytes)
            return
        kept_bytes = rounded_up(num_kept * row_bytes)
        if kept_bytes < head_bytes:
            for head in range(start, start + num_heads * head_bytes, head_bytes):
                self._memory.madvise(mmap.MADV_DONTNEED, head + kept_bytes, head_bytes - kept_bytes)


def _pages(shape: tuple[int, ...], dtype: type[np.generic]) -> mmap.mmap:
    size = math.prod(shape) * np.dtype(dtype).itemsize
    # Shared ones, mmap's default, would stay where they are given back.
    memory = mmap.mmap(-1, max(size, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):
        # A kernel that has no large pages does not know what it is asked.
        memory.madvise(mmap.MADV_NOHUGEPAGE)
    return memory
