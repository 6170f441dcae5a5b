"""jinja2's filters and tests as chat templates have them: none makes, or does, much at once."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

from jinja2 import Environment, pass_environment
from jinja2.exceptions import SecurityError
from jinja2.filters import do_round, sync_do_sum

from maas.edge.runtime.server.amounts import Amounts, goes_on, weigh, weighed
from maas.edge.runtime.server.growth import expect

Make = Callable[..., Any]
# They make as much as a number says, or take the square of a text's length, and no model's
# template has been seen with them.
_REFUSED = ("batch", "slice", "pprint", "striptags", "urlize", "wordwrap", "xmlattr")
# What makes text of what it is given.
_OF_TEXTS = (
    *("capitalize", "center", "e", "escape", "forceescape", "format", "indent", "int", "float"),
    *("lower", "replace", "safe", "string", "title", "trim", "truncate", "upper", "urlencode"),
    "wordcount",
)
# What compares, or hashes, all of it.
_OF_ITEMS = ("dictsort", "groupby", "max", "min", "sort", "unique")
# Of a text they would be formats.
_NUMBER_TESTS = ("divisibleby", "even", "odd")
_TEXT_TESTS = ("lower", "upper")
_COMPARING_TESTS = (
    *("==", "!=", ">", ">=", "<", "<=", "eq", "equalto", "ne", "gt", "greaterthan", "ge"),
    *("lt", "lessthan", "le", "in"),
)
_MAX_PRECISION = 20


def bounded_filters(filters: Mapping[str, Make], amounts: Amounts) -> dict[str, Make]:
    """Return filters that look at the clock and at what they are given, and count what they make.

    Args:
        filters: By name.
        amounts: Counts that.
    """
    made = {**filters, "round": _rounded, "sum": _summed}
    return {
        name: _bounded(name, make, amounts) for name, make in made.items() if name not in _REFUSED
    }


def bounded_tests(tests: Mapping[str, Make]) -> dict[str, Make]:
    """Return tests that look at what they are given."""
    return {
        **tests,
        **{name: _looking(tests[name], _number) for name in _NUMBER_TESTS},
        **{name: _looking(tests[name], _text) for name in _TEXT_TESTS},
        **{name: _looking(tests[name], weighed) for name in _COMPARING_TESTS},
    }


def _bounded(name: str, make: Make, amounts: Amounts) -> Make:
    num_passed = int(hasattr(make, "jinja_pass_arg"))

    # With what jinja2 remembers of it.
    @functools.wraps(make)
    def bounded(*args: Any, **kwargs: Any) -> Any:
        amounts.check_time()
        passed, value, given = args[:num_passed], args[num_passed], args[num_passed + 1 :]
        if name in _OF_TEXTS:
            # The filter is of the operator, and not of the method, of that name.
            expect("%" if name == "format" else name, value, (*given, *kwargs.values()))
        elif name in _OF_ITEMS:
            # What has attributes of its own could hide any amount behind them: it is no text.
            value = amounts.counted(list(value)) if goes_on(value) else value
            weigh((value, given, kwargs))
        elif name == "sum":
            weigh(value, is_text=False)
        return amounts.counted(make(*passed, value, *given, **kwargs))

    return bounded


def _looking(test: Make, look: Callable[[Any], Any]) -> Make:
    @functools.wraps(test)
    def looking(*args: Any) -> bool:
        return test(*map(look, args))

    return looking


def _rounded(value: float, precision: int = 0, method: Any = "common") -> float:
    # It makes ten to that power.
    if abs(precision) > _MAX_PRECISION:
        raise SecurityError(f"round is to {_MAX_PRECISION} places at most")
    return do_round(value, precision, method)


@pass_environment
def _summed(environment: Environment, iterable: Any, attribute: Any = None, start: Any = 0) -> Any:
    # Lists would be copied for each that is added.
    if not isinstance(start, int | float):
        raise SecurityError("sum is of numbers")
    return sync_do_sum(environment, iterable, attribute, start)


def _number(value: Any) -> Any:
    if not isinstance(value, int | float):
        raise SecurityError("that is asked of numbers")
    return weighed(value)


def _text(value: Any) -> Any:
    weigh(value)
    return value
