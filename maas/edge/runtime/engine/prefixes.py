"""Keys and values of requests that ended, for requests that begin with the same tokens."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Copying fewer positions than this is not worth a lookup's result.
MIN_SHARED = 16


@dataclass(frozen=True)
class _Entry:
    tokens: NDArray[np.int64]
    kept: NDArray[Any]

    @property
    def size_bytes(self) -> int:
        return self.kept.nbytes + self.tokens.nbytes


class PrefixCache:
    """A bounded number of bytes, the least recently used of which go first.

    Args:
        max_bytes: Of keys and values; 0 keeps nothing.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._next = 0
        self._entries: OrderedDict[int, tuple[str, _Entry]] = OrderedDict()

    def find(self, space: str, tokens: NDArray[np.int64]) -> tuple[int, NDArray[Any] | None]:
        """Return how many of the first tokens are known, and their keys and values.

        Args:
            space: Only entries of the same space are seen: another adapter's keys are other
                keys, and another tenant's are not to be told by timing.
            tokens: The prompt. Its last token is never counted: its logits are needed.
        """
        best, best_id = 0, None
        for entry_id, (of, entry) in self._entries.items():
            if of == space:
                num_shared = _shared(entry.tokens, tokens[:-1])
                if num_shared > best:
                    best, best_id = num_shared, entry_id
        if best_id is None or best < MIN_SHARED:
            return 0, None
        self._entries.move_to_end(best_id)
        return best, self._entries[best_id][1].kept

    def knows(self, space: str, tokens: NDArray[np.int64]) -> bool:
        """Say whether all of these tokens are in one entry."""
        return any(
            of == space and _shared(entry.tokens, tokens) == len(tokens)
            for of, entry in self._entries.values()
        )

    def can_keep(self, num_bytes: int) -> bool:
        """Say whether an entry of this size has room, others gone."""
        return num_bytes <= self._max_bytes

    def put(self, space: str, tokens: NDArray[np.int64], kept: NDArray[Any]) -> None:
        """Keep what was computed; entries that are the start of it go."""
        entry = _Entry(tokens.copy(), kept)
        if not self.can_keep(entry.size_bytes):
            return
        for known_id, (of, known) in list(self._entries.items()):
            if of == space and _shared(known.tokens, tokens) == len(known.tokens):
                self._drop(known_id)
        while self._num_bytes + entry.size_bytes > self._max_bytes:
            self._drop(next(iter(self._entries)))
        self._entries[self._next] = (space, entry)
        self._next += 1
        self._num_bytes += entry.size_bytes

    def forget(self, space_prefix: str) -> None:
        """Drop the entries of all spaces whose names begin so."""
        for known_id, (of, _) in list(self._entries.items()):
            if of.startswith(space_prefix):
                self._drop(known_id)

    def _drop(self, entry_id: int) -> None:
        self._num_bytes -= self._entries.pop(entry_id)[1].size_bytes


def _shared(known: NDArray[np.int64], tokens: NDArray[np.int64]) -> int:
    length = min(len(known), len(tokens))
    differs = np.flatnonzero(known[:length] != tokens[:length])
    return int(differs[0]) if len(differs) else length
