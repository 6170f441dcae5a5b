"""How much a chat template may make, and how long: counted while it runs.

Nothing that nests without bound may be made text, compared or hashed: C code does that in one go.
"""

import threading
import time
from collections.abc import ItemsView, Iterable, Iterator, KeysView, Mapping, ValuesView
from typing import Any

from jinja2.exceptions import SecurityError
from jinja2.runtime import LoopContext, Undefined

# Characters, and places of lists: the longest body there may be, eight times.
MAX_MADE = 64 << 20
_MAX_PARTS = 2_000_000
# Of a whole number: dividing takes the square of it.
_MAX_BITS = 4096
_HOLDERS = (list, tuple, set, frozenset, KeysView, ValuesView, ItemsView)
# What else has a short text. Methods, for one, may tell of all that they belong to.
_PLAIN = (float, complex, type(None), range, Undefined)


class _Made(threading.local):
    size: float = 0
    until: float = float("inf")


class Amounts:
    """Counts what is made in this thread, and looks at the clock, since it was told to begin."""

    def __init__(self) -> None:
        self._made = _Made()

    def begin(self, max_s: float) -> None:
        """Count from nothing.

        Args:
            max_s: Of the processor; others that run beside this thread do not count.
        """
        self._made.size = 0
        self._made.until = time.thread_time() + max_s

    def check_time(self) -> None:
        """Look at the clock.

        Raises:
            SecurityError: The time is over.
        """
        if time.thread_time() > self._made.until:
            raise SecurityError("it takes too long")

    def watched(self, items: Iterable[Any]) -> Iterator[Any]:
        """Return items, looking at the clock before each."""
        for item in items:
            self.check_time()
            yield item

    def spend(self, size: float) -> None:
        """Count what is made.

        Raises:
            SecurityError: It is too much.
        """
        self._made.size += size
        if self._made.size > MAX_MADE:
            raise SecurityError("it makes too much text")

    def counted(self, value: Any) -> Any:
        """Count a value that was made, as far as it has a size; return it, watched."""
        if isinstance(value, str | bytes | list | tuple | dict):
            self.spend(len(value))
        return self.watched(value) if goes_on(value) else value

    def text(self, value: Any) -> str:
        """Return a value as text, where that is not too long."""
        if isinstance(value, str):
            return value
        weigh(value)
        return str(value)

    def joined(self, parts: Iterable[Any], between: str = "") -> str:
        """Return parts as one text."""
        texts: list[str] = []
        for part in parts:
            texts.append(self.text(part))
            self.spend(len(texts[-1]) + len(between))
        return between.join(texts)


def weigh(value: Any, *, is_text: bool = True) -> int:
    """Return about how long a value is as text.

    Args:
        value: Of any kind.
        is_text: Whether it is made text; otherwise it is compared, hashed or summed up.

    Raises:
        SecurityError: It is too long, or has no text that tells how long it is.
    """
    size, num_parts, left = 0, 0, [value]
    while left:
        part = left.pop()
        num_parts += 1
        if isinstance(part, str | bytes):
            size += len(part)
        elif isinstance(part, int):
            size += _num_digits(part)
        elif isinstance(part, Mapping):
            left += part.keys()
            left += part.values()
        elif isinstance(part, _HOLDERS):
            left += part
        elif is_text and not isinstance(part, _PLAIN):
            raise SecurityError(f"{type(part).__name__} is no text")
        if size > MAX_MADE or num_parts + len(left) > _MAX_PARTS:
            raise SecurityError("it makes too much text")
    return size + num_parts


def weighed(value: Any) -> Any:
    """Return a value that may be compared and hashed; of what goes on, each item when it comes.

    Raises:
        SecurityError: It has too many parts.
    """
    if isinstance(value, str):
        return value
    if goes_on(value):
        return map(weighed, value)
    weigh(value, is_text=False)
    return value


def goes_on(value: Any) -> bool:
    """Say whether a value gives items as they are asked for."""
    return isinstance(value, Iterator) and not isinstance(value, LoopContext)


def _num_digits(number: int) -> int:
    num_bits = number.bit_length()
    if num_bits > _MAX_BITS:
        raise SecurityError("a number is too large")
    return num_bits // 3
