"""Where chat templates run: they come with models, reach nothing, end in time and stay small.

A thread cannot be ended from outside. What can go on without end in a template, its loops, calls
and filters, is therefore made to look at the clock; what would do much at once is refused.
"""

from typing import Any

from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import loopcontrols
from jinja2.filters import make_attrgetter
from jinja2.runtime import Context, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from maas.edge.runtime.server.amounts import Amounts, weighed
from maas.edge.runtime.server.filters import bounded_filters, bounded_tests
from maas.edge.runtime.server.growth import expect, percent_size

# No template can write names with a space.
_WATCHED, _JOINED, _COUNTED, _WEIGHED = "its loops", "its parts", "its slices", "its values"
_MAX_PRODUCT = 1_000_000
# Constants are computed when a template is compiled.
_MAX_COMPILE_S = 5.0
_REFUSED_METHODS = ("encode", "from_bytes", "maketrans", "striptags", "to_bytes", "translate")
_COMPARING_METHODS = ("count", "index")
_REFUSED_GLOBALS = ("lipsum",)


class TemplateSandbox(ImmutableSandboxedEnvironment):
    """Compiles templates whose rendering is bounded in time and in what it makes.

    Attributes:
        amounts: Counts that.
    """

    intercepted_binops = frozenset({"*", "**", "+", "-", "%", "//"})

    def __init__(self) -> None:
        self.amounts = Amounts()
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[loopcontrols],
            finalize=self.amounts.text,
        )
        self.concat = self.amounts.joined
        self.filters = {
            **bounded_filters(self.filters, self.amounts),
            "join": self._join,
            _JOINED: self.amounts.joined,
            _COUNTED: self.amounts.counted,
            _WATCHED: self.amounts.watched,
            _WEIGHED: weighed,
        }
        self.tests = bounded_tests(self.tests)
        for name in _REFUSED_GLOBALS:
            del self.globals[name]

    def compiled(self, source: str) -> "BoundedTemplate":
        """Return a template.

        Raises:
            TemplateError: It is none.
        """
        self.amounts.begin(_MAX_COMPILE_S)
        tree: nodes.Template = _Measured().visit(self.parse(source))
        for loop in list(tree.find_all(nodes.For)):
            loop.iter = _filtered(loop.iter, _WATCHED)
        tree.set_environment(self)
        return BoundedTemplate(self, tree)

    def call(self, /, context: Context, obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Call what a template calls, its own macros among it."""
        self.amounts.check_time()
        if not isinstance(obj, Macro | LoopContext):
            # A format is wrapped by the sandbox.
            method = getattr(obj, "__wrapped__", obj)
            value, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
            if isinstance(value, str) and name == "join" and args:
                return self.amounts.joined(args[0], str(value))
            _check_call(name, value, (*args, *kwargs.values()))
            args = tuple(map(weighed, args))
            kwargs = {key: weighed(item) for key, item in kwargs.items()}
        return self.amounts.counted(super().call(context, obj, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Compute, where that is quick and small."""
        if operator == "**" or (operator == "*" and _size(left) * _size(right) > _MAX_PRODUCT):
            raise SecurityError(f"{operator!r} of such values is not done here")
        if operator == "%" and isinstance(left, str):
            self.amounts.spend(percent_size(left, right))
        elif operator == "-" or isinstance(left, int):
            # Of numbers, and of the keys of dicts.
            left, right = weighed(left), weighed(right)
        return self.amounts.counted(super().call_binop(context, operator, left, right))

    def getitem(self, obj: Any, argument: Any) -> Any:
        """Return what an object has at a place."""
        if isinstance(argument, tuple):
            weighed(argument)
        return super().getitem(obj, argument)

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
        self._sandbox.amounts.begin(max_render_s)
        return self._template.render(values)


class _Measured(NodeTransformer):
    """Has what the compiler would do by itself done by filters that look at it."""

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802 - jinja2's
        self.generic_visit(node)
        return _filtered(nodes.List(node.nodes, lineno=node.lineno), _JOINED)

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # noqa: N802 - jinja2's
        self.generic_visit(node)
        return _filtered(node, _COUNTED) if isinstance(node.arg, nodes.Slice) else node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:  # noqa: N802 - jinja2's
        self.generic_visit(node)
        # Of two, one that is flat bounds it.
        is_quick = len(node.ops) == 1 and (_is_flat(node.expr) or _is_flat(node.ops[0].expr))
        if not is_quick:
            node.expr = _filtered(node.expr, _WEIGHED)
            for operand in node.ops:
                operand.expr = _filtered(operand.expr, _WEIGHED)
        return node

    def visit_Pair(self, node: nodes.Pair) -> nodes.Node:  # noqa: N802 - jinja2's
        self.generic_visit(node)
        # It is hashed.
        if not _is_flat(node.key):
            node.key = _filtered(node.key, _WEIGHED)
        return node


def _filtered(node: nodes.Node, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


def _is_flat(node: nodes.Expr) -> bool:
    if isinstance(node, nodes.List | nodes.Tuple):
        return all(isinstance(item, nodes.Const) for item in node.items)
    return isinstance(node, nodes.Const)


def _check_call(name: str, value: Any, given: tuple[Any, ...]) -> None:
    if name in _REFUSED_METHODS:
        raise SecurityError(f"{name} is not there")
    # Of a class as of a value: it is none, and so refused.
    if isinstance(value, str | int) or (isinstance(value, type) and issubclass(value, str | int)):
        expect(name, value, given)
    elif name in _COMPARING_METHODS:
        weighed(value)


def _size(value: Any) -> float:
    return abs(value) if isinstance(value, int | float) else len(value)
