"""What a name may hold: nothing that steers who reads it."""

from unicodedata import bidirectional, category

_CONTROLS = frozenset({"Cc", "Zl", "Zp"})
_DIRECTIONS = frozenset({"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"})


def is_steering(text: str) -> bool:
    """Say whether a text holds control characters, ends of lines or changes of direction.

    A terminal obeys the first; the last make a name look like another.
    """
    return any(category(c) in _CONTROLS or bidirectional(c) in _DIRECTIONS for c in text)
