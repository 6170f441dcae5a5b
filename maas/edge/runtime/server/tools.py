"""Tool calls: what makes a model write one, and how one is read from its text.

``required`` and named calls are forced by a grammar, whatever the model was taught. ``auto``
reads the form models of the Hermes family write: ``<tool_call>{"name": ..., "arguments": ...}
</tool_call>``.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from maas.core.errors import InvalidRequest
from maas.core.ids import new_id
from maas.edge.runtime.server.grammars import json_grammar
from maas.protocol.chat import ChatCompletionRequest, NamedTool, Tool

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
Mode = Literal["none", "auto", "forced"]


@dataclass(frozen=True)
class ToolPlan:
    """How tools are used in one request.

    Attributes:
        mode: ``forced``: the whole answer is calls, held by ``grammar``.
        name: The one function to call, where its arguments are the whole answer.
    """

    mode: Mode = "none"
    grammar: str | None = None
    name: str | None = None


def plan_tools(body: ChatCompletionRequest) -> ToolPlan:
    """Return how a request's tools are used.

    Raises:
        InvalidRequest: It names a tool it does not bring.
    """
    tools, choice = body.tools or [], body.tool_choice
    if not tools or choice == "none":
        return ToolPlan()
    if isinstance(choice, NamedTool):
        wanted = next((t for t in tools if t.function.name == choice.function.name), None)
        if wanted is None:
            raise InvalidRequest(
                f"tool_choice names {choice.function.name!r}, which is none of the tools",
                param="tool_choice",
            )
        return ToolPlan("forced", json_grammar(_parameters(wanted)), wanted.function.name)
    if choice == "required":
        most = {"maxItems": 1} if body.parallel_tool_calls is False else {}
        calls = {"type": "array", "minItems": 1, **most, "items": {"anyOf": _calls(tools)}}
        return ToolPlan("forced", json_grammar(calls))
    return ToolPlan("auto")


def read_calls(text: str, plan: ToolPlan) -> tuple[str | None, list[dict[str, Any]]]:
    """Return the text beside the calls in an answer, and the calls as the API writes them."""
    if plan.mode == "forced":
        if plan.name is not None:
            return None, [_call(plan.name, text)]
        try:
            items = json.loads(text)
        except (ValueError, RecursionError):
            # Cut off by max_tokens, or nested too deep.
            return text, []
        return None, [_call(i["name"], json.dumps(i["parameters"])) for i in items]
    content, calls = text, list[dict[str, Any]]()
    while plan.mode == "auto" and _OPEN in content:
        before, _, rest = content.partition(_OPEN)
        inside, _, after = rest.partition(_CLOSE)
        try:
            said = json.loads(inside)
            calls.append(_call(str(said["name"]), json.dumps(said.get("arguments", {}))))
        except (ValueError, KeyError, TypeError, RecursionError):
            break
        content = before + after
    return (content.strip() or None) if calls else content, calls


def _call(name: str, arguments: str) -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    return {"id": new_id("call"), "type": "function", "function": function}


def _parameters(tool: Tool) -> dict[str, Any]:
    return tool.function.parameters or {"type": "object", "properties": {}}


def _calls(tools: Sequence[Tool]) -> list[dict[str, Any]]:
    return [
        {
            "type": "object",
            "properties": {"name": {"const": t.function.name}, "parameters": _parameters(t)},
            "required": ["name", "parameters"],
            "additionalProperties": False,
        }
        for t in tools
    ]
