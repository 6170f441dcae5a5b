"""How much a chat template may make: counted as it is made, and before where it is made at once.

Whatever joins, fills or repeats is measured by what it is given; all that comes of it is counted.
"""

import functools
import re
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from jinja2.exceptions import SecurityError
from jinja2.utils import Namespace

# Characters, and places of lists: the longest body there may be, eight times.
MAX_MADE = 64 << 20
_MAX_PARTS = 2_000_000
_NUMBER = re.compile(r"\d+")
_TAB_SIZE = 8


class Amounts:
    """Counts what is made in this thread since it was told to begin."""

    def __init__(self) -> None:
        self._made = threading.local()

    def begin(self) -> None:
        """Count from nothing."""
        self._made.size = 0

    def spend(self, size: float) -> None:
        """Count what is made.

        Raises:
            SecurityError: It is too much.
        """
        self._made.size = getattr(self._made, "size", 0) + size
        if self._made.size > MAX_MADE:
            raise SecurityError("it makes too much text")

    def counted(self, value: Any) -> Any:
        """Count a value that was made, as far as it has a size; return it."""
        if isinstance(value, str | bytes | list | tuple | dict):
            self.spend(len(value))
        return value

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

    def measured(self, name: str, make: Callable[..., Any]) -> Callable[..., Any]:
        """Return a filter that looks at what it is given first, and counts what it made."""
        num_passed = int(hasattr(make, "jinja_pass_arg"))

        # With what jinja2 remembers of it.
        @functools.wraps(make)
        def measure(*args: Any, **kwargs: Any) -> Any:
            value, *given = args[num_passed:]
            expect(name, value, (*given, *kwargs.values()))
            return self.counted(make(*args, **kwargs))

        return measure


def expect(name: str, value: Any, given: tuple[Any, ...]) -> None:
    """Refuse what would make too much at once.

    Args:
        name: Of a filter, or of a method of texts.
        value: What it is of.
        given: What else it is given.

    Raises:
        SecurityError: It would.
    """
    for item in (value, *given):
        weigh(item)
    if name in _GROWTH and _GROWTH[name](str(value), given) > MAX_MADE:
        raise SecurityError(f"{name} of such values makes too much text")


def weigh(value: Any) -> int:
    """Return about how long a value is as text.

    Raises:
        SecurityError: It is too long, or has no text that tells how long it is.
    """
    size, num_parts, left = 0, 0, [value]
    while left:
        part = left.pop()
        num_parts += 1
        if isinstance(part, Namespace):
            raise SecurityError("a namespace is no text")
        if isinstance(part, str | bytes):
            size += len(part)
        elif isinstance(part, Mapping):
            left += part.keys()
            left += part.values()
        elif isinstance(part, list | tuple | set | frozenset):
            left += part
        if size > MAX_MADE or num_parts + len(left) > _MAX_PARTS:
            raise SecurityError("it makes too much text")
    return size + num_parts


def formatted_size(text: str, given: Any) -> int:
    """Return how long a format can become: each of its fields as wide as a number says."""
    numbers = [int(number) for number in _NUMBER.findall(text)]
    items = given if isinstance(given, tuple) else (given,)
    numbers += [abs(item) for item in items if _is_number(item)]
    num_fields = text.count("%") + text.count("{")
    return len(text) + num_fields * (weigh(given) + max(numbers, default=0))


def _replaced_size(text: str, given: tuple[Any, ...]) -> int:
    old, new = (*map(str, given[:2]), "", "")[:2]
    return len(text) + text.count(old) * len(new)


def _filled_size(_: str, given: tuple[Any, ...]) -> int:
    return max((item for item in given if _is_number(item)), default=0)


def _indented_size(text: str, given: tuple[Any, ...]) -> int:
    widths = [item if _is_number(item) else len(str(item)) for item in given]
    num_places = text.count("\n") + text.count("\t") + 1
    return len(text) + num_places * max(widths, default=_TAB_SIZE)


def _wrapped_size(text: str, given: tuple[Any, ...]) -> int:
    return len(text) * (1 + max((len(item) for item in given if isinstance(item, str)), default=1))


def _is_number(item: Any) -> bool:
    return isinstance(item, int) and not isinstance(item, bool)


_GROWTH: dict[str, Callable[[str, tuple[Any, ...]], int]] = {
    **dict.fromkeys(("center", "ljust", "rjust", "zfill"), _filled_size),
    **dict.fromkeys(("indent", "expandtabs"), _indented_size),
    **dict.fromkeys(("format", "format_map"), formatted_size),
    "replace": _replaced_size,
    "wordwrap": _wrapped_size,
}
