"""The error tree: drawn as it is, one code a type, and whole after crossing a process border."""

import inspect
import pickle
import re

import pytest

from maas.core import errors
from maas.core.errors import MaasError


def kinds() -> list[type[MaasError]]:
    found = [value for _, value in inspect.getmembers(errors, inspect.isclass)]
    return [kind for kind in found if issubclass(kind, MaasError)]


def drawn_parents() -> dict[str, str]:
    """Read the tree in the module's docstring: child -> parent."""
    parents: dict[str, str] = {}
    path = ["MaasError"]
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"    ([│ ]*)[├└]── (\w+)", line)
        if match is None:
            continue
        depth = len(match[1]) // 4 + 1
        path = [*path[:depth], match[2]]
        parents[match[2]] = path[depth - 1]
    return parents


def test_tree_in_the_docstring_is_the_tree_in_the_code():
    actual = {k.__name__: k.__mro__[1].__name__ for k in kinds() if k is not MaasError}
    assert drawn_parents() == actual


def test_every_code_is_one_types_own():
    codes = [kind.code for kind in kinds()]
    assert len(set(codes)) == len(codes) > 20


@pytest.mark.parametrize("kind", kinds())
def test_error_keeps_message_and_context_across_processes(kind):
    error = pickle.loads(pickle.dumps(kind("what was wrong", param="n", retry_after_s=3)))
    assert type(error) is kind
    assert (str(error), error.message) == ("what was wrong", "what was wrong")
    assert error.context == {"param": "n", "retry_after_s": 3}


@pytest.mark.parametrize("kind", kinds())
def test_no_kind_overrides_how_errors_are_made(kind):
    assert kind is MaasError or "__init__" not in vars(kind)
