"""Where chat templates run: they come with models, reach nothing, end in time and stay small.

A thread cannot be ended from outside. What can go on without end in a template, its loops and its
calls, is therefore made to look at the clock; what makes huge values at once is refused.
"""

import time
from collections.abc import Iterable, Iterator
from typing import Any

from jinja2 import nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.ext import loopcontrols
from jinja2.filters import make_attrgetter
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from maas.edge.runtime.server.amounts import Amounts, expect, formatted_size

# No template can write, or read, names with a space.
_DEADLINE = "its deadline"
_WATCHED = "its loops"
_MAX_PRODUCT = 1_000_000
# They make as much as a number says, and no model's template has been seen with them.
_REFUSED_FILTERS = ("batch", "slice", "pprint", "urlize", "xmlattr")
_REFUSED_METHODS = ("encode", "maketrans", "to_bytes", "translate")
# What makes text of what it is given.
_MEASURED_FILTERS = (
    *("capitalize", "center", "e", "escape", "forceescape", "format", "indent", "int", "float"),
    *("list", "lower", "replace", "reverse", "safe", "string", "striptags", "sum", "title"),
    *("tojson", "trim", "truncate", "upper", "urlencode", "wordcount", "wordwrap"),
)
_JOINED, _COUNTED = "its parts", "its slices"
_REFUSED_GLOBALS = ("lipsum",)


class TemplateSandbox(ImmutableSandboxedEnvironment):
    """Compiles templates whose rendering is bounded in time and in what it makes.

    Attributes:
        amounts: Counts that.
    """

    intercepted_binops = frozenset({"*", "**", "+", "%"})

    def __init__(self) -> None:
        self.amounts = Amounts()
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[loopcontrols],
            finalize=self.amounts.text,
        )
        self.concat = self.amounts.joined
        for name in _REFUSED_FILTERS:
            del self.filters[name]
        for name in _MEASURED_FILTERS:
            self.filters[name] = self.amounts.measured(name, self.filters[name])
        self.filters["join"] = self._join
        self.filters[_JOINED] = self.amounts.joined
        self.filters[_COUNTED] = self.amounts.counted
        for name in _REFUSED_GLOBALS:
            del self.globals[name]
        self.filters[_WATCHED] = _watched

    def compiled(self, source: str) -> "BoundedTemplate":
        """Return a template.

        Raises:
            TemplateError: It is none.
        """
        self.amounts.begin()
        tree: nodes.Template = _Measured().visit(self.parse(source))
        for loop in list(tree.find_all(nodes.For)):
            loop.iter = nodes.Filter(loop.iter, _WATCHED, [], [], None, None, lineno=loop.lineno)
        tree.set_environment(self)
        return BoundedTemplate(self, tree)

    def call(self, /, context: Context, obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Call what a template calls, its own macros among it."""
        _check_time(context)
        # A format is wrapped by the sandbox.
        method = getattr(obj, "__wrapped__", obj)
        value, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
        if isinstance(value, str | int):
            if name in _REFUSED_METHODS:
                raise SecurityError(f"{name} is not there")
            if name == "join" and args:
                return self.amounts.joined(args[0], str(value))
            expect(name, value, (*args, *kwargs.values()))
        return self.amounts.counted(super().call(context, obj, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Compute, where that is quick and small."""
        if operator == "**" or (operator == "*" and _size(left) * _size(right) > _MAX_PRODUCT):
            raise SecurityError(f"{operator!r} of such values is not done here")
        if operator == "%" and isinstance(left, str):
            self.amounts.spend(formatted_size(left, right))
        return self.amounts.counted(super().call_binop(context, operator, left, right))

    def _join(self, value: Any, d: Any = "", attribute: str | int | None = None) -> str:
        parts = value if attribute is None else map(make_attrgetter(self, attribute), value)
        return self.amounts.joined(parts, self.amounts.text(d))


class BoundedTemplate:
    """A template and the time it may take.

    Args:
        sandbox: Where it runs.
        tree: The template, its loops watched.
    """

    def __init__(self, sandbox: TemplateSandbox, tree: nodes.Template) -> None:
        self._sandbox = sandbox
        self._template = sandbox.from_string(tree)

    def render(self, max_render_s: float, **values: Any) -> str:
        """Return the text.

        Args:
            max_render_s: Of the processor; others that run beside it do not count.
            values: What the template knows by these names.

        Raises:
            TemplateError: It fails, or takes longer.
        """
        self._sandbox.amounts.begin()
        return self._template.render({**values, _DEADLINE: time.thread_time() + max_render_s})


class _Measured(NodeTransformer):
    """Has what the compiler would make by itself made by filters that count it."""

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802 - jinja2's
        self.generic_visit(node)
        parts = nodes.List(node.nodes, lineno=node.lineno)
        return nodes.Filter(parts, _JOINED, [], [], None, None, lineno=node.lineno)

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # noqa: N802 - jinja2's
        self.generic_visit(node)
        if not isinstance(node.arg, nodes.Slice):
            return node
        return nodes.Filter(node, _COUNTED, [], [], None, None, lineno=node.lineno)


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
