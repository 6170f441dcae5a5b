"""Keys and values of requests that ended, for requests that begin with the same tokens."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maas.edge.runtime.engine.pages import rounded_up

# Copying fewer positions than this is not worth a lookup's result.
MIN_SHARED = 16


@dataclass(frozen=True)
class _Entry:
    tokens: NDArray[np.int64]
    kept: NDArray[Any]
    size_bytes: int


class PrefixCache:
    """A bounded number of bytes, the least recently used of which go first.

    Args:
        max_bytes: Of keys and values; 0 keeps nothing.

    Attributes:
        num_bytes: Of what is kept now.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self.num_bytes = 0
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

    def put(
        self,
        space: str,
        tokens: NDArray[np.int64],
        num_bytes: int,
        read: Callable[[], NDArray[Any]],
    ) -> None:
        """Keep what was computed, unless it is known; entries that are the start of it go.

        Args:
            space: Who may see it.
            tokens: What was computed.
            num_bytes: Of their keys and values.
            read: Returns these; called when there is room for them.
        """
        size_bytes = rounded_up(num_bytes) + tokens.nbytes
        if size_bytes > self._max_bytes or self.knows(space, tokens):
            return
        for known_id, (of, known) in list(self._entries.items()):
            if of == space and _shared(known.tokens, tokens) == len(known.tokens):
                self._drop(known_id)
        while self.num_bytes + size_bytes > self._max_bytes:
            self._drop(next(iter(self._entries)))
        self._entries[self._next] = (space, _Entry(tokens.copy(), read(), size_bytes))
        self._next += 1
        self.num_bytes += size_bytes

    def forget(self, space_prefix: str) -> None:
        """Drop the entries of all spaces whose names begin so."""
        for known_id, (of, _) in list(self._entries.items()):
            if of.startswith(space_prefix):
                self._drop(known_id)

    def _drop(self, entry_id: int) -> None:
        self.num_bytes -= self._entries.pop(entry_id)[1].size_bytes


def _shared(known: NDArray[np.int64], tokens: NDArray[np.int64]) -> int:
    length = min(len(known), len(tokens))
    differs = np.flatnonzero(known[:length] != tokens[:length])
    return int(differs[0]) if len(differs) else length
