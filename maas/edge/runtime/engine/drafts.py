"""Guesses the next tokens from the text itself: what followed the last few before.

Source: "Prompt Lookup Decoding" (Saxena, 2023). A guess costs nothing but the check, and the
check is exact: each token is chosen as without the guess, and the first that differs ends it.
"""

from collections.abc import Sequence

_MAX_NGRAM = 3
_MIN_NGRAM = 2
# Checking four guesses costs about two steps: fewer tokens than that from a check do not pay.
_PAYS_FROM = 2.0
_MEMORY = 0.7
_FIRST_PAUSE = 8
_MAX_PAUSE = 128


class PromptLookup:
    """Guesses for one sequence, and whether guessing pays.

    Args:
        max_tokens: At most so many a guess.
    """

    def __init__(self, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self._gain = _PAYS_FROM + 1.0
        self._pause = 0
        self._next_pause = _FIRST_PAUSE

    def propose(self, tokens: Sequence[int]) -> tuple[int, ...]:
        """Return what may come after these tokens; nothing if they were not seen before."""
        if not self._max_tokens:
            return ()
        if self._pause:
            self._pause -= 1
            return ()
        for size in range(_MAX_NGRAM, _MIN_NGRAM - 1, -1):
            found = _after(tokens, size)
            if found is not None:
                return tuple(tokens[found : found + self._max_tokens])
        return ()

    def learn(self, num_tokens: int) -> None:
        """Hear how many tokens a check gave, the one that is always given included."""
        self._gain = _MEMORY * self._gain + (1 - _MEMORY) * num_tokens
        if self._gain < _PAYS_FROM:
            self._pause, self._next_pause = self._next_pause, min(self._next_pause * 2, _MAX_PAUSE)
            self._gain = _PAYS_FROM + 1.0
        elif num_tokens > _PAYS_FROM:
            self._next_pause = _FIRST_PAUSE


def _after(tokens: Sequence[int], size: int) -> int | None:
    """Return where the newest earlier occurrence of the last ``size`` tokens ends."""
    if len(tokens) <= size:
        return None
    last = list(tokens[-size:])
    for start in range(len(tokens) - size - 1, -1, -1):
        if tokens[start] == last[0] and list(tokens[start : start + size]) == last:
            return start + size
    return None
