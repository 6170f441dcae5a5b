"""Messages and tools in the shape in which serving hands them to a chat template. Light.

vLLM does not give a template what the caller sent: texts are made one string, or parts where the
template loops over parts; absent content is empty; arguments of calls are objects; what no
template knows is left out; tools get the fields that the caller left out; and where a template
does not know ``developer``, that is ``system``. Training data has to go the same way, or the model
learns from texts it is never asked with. A test holds this against vLLM itself.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser

Message = Mapping[str, Any]


class _Generation(Extension):
    """``{% generation %}``: marks what the assistant says; nothing to a text."""

    tags = {"generation"}  # noqa: RUF012 - Jinja's own declaration

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Return the body as it is."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class ServingShape:
    """What serving makes of messages and tools for one template.

    Args:
        template: The chat template; none where the model has none.
    """

    def __init__(self, template: str | None) -> None:
        text = template or ""
        self.takes_parts = _loops_over_content(text)
        self._knows_developer = '"developer"' in text or "'developer'" in text

    def messages(self, messages: Sequence[Message]) -> list[dict[str, Any]]:
        """Return messages as the template gets them."""
        plain = [self._message(message) for message in messages]
        if self._knows_developer or all(m["role"] != "developer" for m in plain):
            return plain
        return _join_instructions(
            [m | {"role": "system"} if m["role"] == "developer" else m for m in plain]
        )

    def tools(self, tools: Sequence[Mapping[str, Any]] | None) -> list[Any] | None:
        """Return tools as the template gets them; none where there are none."""
        return [_tool(tool) for tool in tools] if tools else None

    def _message(self, message: Message) -> dict[str, Any]:
        role, given = message["role"], message.get("content")
        parts = [given] if isinstance(given, str) else [part["text"] for part in given or []]
        plain: dict[str, Any] = {"role": role}
        if self.takes_parts and role != "tool":
            plain["content"] = [{"type": "text", "text": part} for part in parts]
        else:
            plain["content"] = "\n".join(parts)
        if role == "assistant" and message.get("tool_calls"):
            plain["tool_calls"] = [_call(call) for call in message["tool_calls"]]
        if role == "tool" and "tool_call_id" in message:
            plain["tool_call_id"] = message["tool_call_id"]
        if isinstance(message.get("name"), str):
            plain["name"] = message["name"]
        return plain


def _call(call: Mapping[str, Any]) -> dict[str, Any]:
    function = dict(call["function"])
    arguments = function.get("arguments")
    if isinstance(arguments, str) or arguments is None:
        function["arguments"] = json.loads(arguments) if arguments else {}
    return {**call, "function": function}


def _tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    given = tool["function"]
    function = {name: given.get(name) for name in ("name", "description", "parameters")}
    if given.get("strict") is not None:
        function["strict"] = given["strict"]
    return {"type": "function", "function": function}


def _join_instructions(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Put all system messages into one, the first, if they are not that already."""
    places = [index for index, message in enumerate(messages) if message["role"] == "system"]
    if places in ([], [0]):
        return messages
    texts = [_text(messages[index]["content"]) for index in places]
    joined = {"role": "system", "content": "\n\n".join(text for text in texts if text)}
    return [joined, *(message for message in messages if message["role"] != "system")]


def _text(content: str | list[dict[str, Any]]) -> str:
    return content if isinstance(content, str) else "\n".join(part["text"] for part in content)


def _loops_over_content(template: str) -> bool:
    """Say whether a template takes a message's content as parts: it has a loop over it."""
    environment = jinja2.Environment(  # noqa: S701 - parsed only; nothing is rendered
        extensions=[_Generation, loopcontrols]
    )
    try:
        tree = environment.parse(template)
    except jinja2.TemplateError:
        return False
    in_macros: set[int] = set()
    for macro in tree.find_all(nodes.Macro):
        names = set(_names_of_content(tree, macro))
        for loop in macro.find_all(nodes.For):
            in_macros.add(id(loop))
            if isinstance(loop.iter, nodes.Name) and loop.iter.name in names:
                return True
    return any(
        _is_content(loop.iter)
        or (
            isinstance(loop.iter, nodes.Name)
            and loop.iter.name == "content"
            and id(loop) not in in_macros
        )
        for loop in tree.find_all(nodes.For)
    )


def _names_of_content(tree: nodes.Template, macro: nodes.Macro) -> Iterator[str]:
    """Yield the parameters of a macro that are given a message's content somewhere."""
    for call in tree.find_all(nodes.Call):
        if not isinstance(call.node, nodes.Name) or call.node.name != macro.name:
            continue
        for parameter, argument in zip(macro.args, call.args, strict=False):
            if _is_content(argument):
                yield parameter.name
        yield from (keyword.key for keyword in call.kwargs if _is_content(keyword.value))


def _is_content(node: nodes.Node | None) -> bool:
    """Say whether an expression is a message's content, or made of it by filters or slices."""
    if isinstance(node, (nodes.Filter, nodes.Test)):
        return _is_content(node.node)
    if isinstance(node, nodes.Getitem):
        if isinstance(node.arg, nodes.Slice):
            return _is_content(node.node)
        return isinstance(node.arg, nodes.Const) and node.arg.value == "content"
    return isinstance(node, nodes.Getattr) and node.attr == "content"
