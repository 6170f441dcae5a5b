"""How long what filters and methods of texts make at once will be, told before it is made."""

import re
from collections.abc import Callable
from string import Formatter
from typing import Any

from jinja2.exceptions import SecurityError

from maas.edge.runtime.server.amounts import MAX_MADE, weigh

# Source: Python, "printf-style String Formatting"; as it reads them, each from where one ended.
_PERCENT_FIELD = re.compile(
    r"%(?P<key>\([^)]*\))?[#0\- +]*(?P<width>\*|\d*)(?:\.(?P<precision>\*|\d*))?[hlL]?.", re.DOTALL
)
_NUMBER = re.compile(r"\d+")
_TAB_SIZE = 8
# These look for each character, or from each place, of a text anew.
_SEEKING = ("lstrip", "rfind", "rindex", "rpartition", "rsplit", "rstrip", "strip", "trim")
_MAX_SOUGHT = 1000


def expect(name: str, value: Any, given: tuple[Any, ...]) -> None:
    """Refuse what would make too much at once.

    Args:
        name: Of a filter, or of a method of texts; ``%``: of formatting by that.
        value: What it is of.
        given: What else it is given.

    Raises:
        SecurityError: It would.
    """
    for item in (value, *given):
        weigh(item)
    if name in _GROWTH and _GROWTH[name](str(value), given) > MAX_MADE:
        raise SecurityError(f"{name} of such values makes too much text")
    if name in _SEEKING and any(
        isinstance(item, str) and len(item) > _MAX_SOUGHT for item in given
    ):
        raise SecurityError(f"{name} looks for {_MAX_SOUGHT} characters at most")


def percent_size(text: str, given: Any) -> int:
    """Return how long a format of ``%`` can become."""
    items = given if isinstance(given, tuple) else (given,)
    # A width that is given is one of them.
    most = max((abs(item) for item in items if _is_number(item)), default=0)
    size, num_named = len(text), 0
    for field in _PERCENT_FIELD.finditer(text):
        if "(" in (field["key"] or "")[1:]:
            raise SecurityError("the name of a field has brackets")
        num_named += field["key"] is not None
        for width in (field["width"], field["precision"]):
            size += most if width == "*" else int(width or 0)
    # Without a name each value has one place.
    return size + max(1, num_named) * weigh(given)


def _braces_size(text: str, given: tuple[Any, ...]) -> int:
    size, num_fields = len(text), 0
    for _, name, spec, _ in Formatter().parse(text):
        if name is None:
            continue
        if "{" in (spec or ""):
            raise SecurityError("a field's format is given by another field")
        num_fields += 1
        size += sum(map(int, _NUMBER.findall(spec or "")))
    return size + num_fields * weigh(given)


def _replaced_size(text: str, given: tuple[Any, ...]) -> int:
    old, new = (*map(str, given[:2]), "", "")[:2]
    return len(text) + text.count(old) * len(new)


def _filled_size(_: str, given: tuple[Any, ...]) -> int:
    return max((item for item in given if _is_number(item)), default=0)


def _indented_size(text: str, given: tuple[Any, ...]) -> int:
    widths = [item if _is_number(item) else len(str(item)) for item in given]
    num_places = len(text.splitlines()) + text.count("\t") + 1
    return len(text) + num_places * max(widths, default=_TAB_SIZE)


def _is_number(item: Any) -> bool:
    return isinstance(item, int) and not isinstance(item, bool)


_GROWTH: dict[str, Callable[[str, tuple[Any, ...]], int]] = {
    **dict.fromkeys(("center", "ljust", "rjust", "zfill"), _filled_size),
    **dict.fromkeys(("indent", "expandtabs"), _indented_size),
    **dict.fromkeys(("format", "format_map"), _braces_size),
    "%": percent_size,
    "replace": _replaced_size,
}
