"""Where chat templates run: they come with models, so they reach nothing and end in time.

A thread cannot be ended from outside. What can go on without end in a template, its loops and its
calls, is therefore made to look at the clock; what makes huge values at once is refused.
"""

import time
from collections.abc import Iterable, Iterator
from typing import Any

from jinja2 import nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.ext import loopcontrols
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

# No template can write, or read, names with a space.
_DEADLINE = "its deadline"
_WATCHED = "its loops"
_MAX_PRODUCT = 1_000_000
# They make as much as a number says, and no model's template has been seen with them.
_REFUSED_FILTERS = ("batch", "slice")
_REFUSED_GLOBALS = ("lipsum",)


class TemplateSandbox(ImmutableSandboxedEnvironment):
    """Compiles templates whose rendering is bounded in time; memory is not bounded here."""

    intercepted_binops = frozenset({"*", "**"})

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        for name in _REFUSED_FILTERS:
            del self.filters[name]
        for name in _REFUSED_GLOBALS:
            del self.globals[name]
        self.filters[_WATCHED] = _watched

    def compiled(self, source: str) -> "BoundedTemplate":
        """Return a template.

        Raises:
            TemplateError: It is none.
        """
        tree = self.parse(source)
        for loop in list(tree.find_all(nodes.For)):
            loop.iter = nodes.Filter(loop.iter, _WATCHED, [], [], None, None, lineno=loop.lineno)
        tree.set_environment(self)
        return BoundedTemplate(self, tree)

    def call(self, /, context: Context, obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Call what a template calls, its own macros among it."""
        _check_time(context)
        return super().call(context, obj, *args, **kwargs)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Multiply, where that is quick."""
        if operator != "*" or _size(left) * _size(right) > _MAX_PRODUCT:
            raise SecurityError(f"{operator!r} of such values is not done here")
        return super().call_binop(context, operator, left, right)


class BoundedTemplate:
    """A template and the time it may take.

    Args:
        sandbox: Where it runs.
        tree: The template, its loops watched.
    """

    def __init__(self, sandbox: TemplateSandbox, tree: nodes.Template) -> None:
        self._template = sandbox.from_string(tree)

    def render(self, max_render_s: float, **values: Any) -> str:
        """Return the text.

        Args:
            max_render_s: Of the processor; others that run beside it do not count.
            values: What the template knows by these names.

        Raises:
            TemplateError: It fails, or takes longer.
        """
        return self._template.render({**values, _DEADLINE: time.thread_time() + max_render_s})


@pass_context
def _watched(context: Context, items: Iterable[Any]) -> Iterator[Any]:
    for item in items:
        _check_time(context)
        yield item


def _check_time(context: Context) -> None:
    # Where a template sets names of its own, they are elsewhere.
    if time.thread_time() > context.parent[_DEADLINE]:
        raise SecurityError("it takes too long")


def _size(value: Any) -> float:
    return abs(value) if isinstance(value, int | float) else len(value)
