"""Tool calls: what makes a model write one, and how one is read from its text.

``required`` and named calls are forced by a grammar, whatever the model was taught; calls that it
writes of itself (``auto``) are read in the form of the Hermes family.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from maas.core.errors import InvalidRequest
from maas.edge.runtime.server.calls import Call, CallReader, make_call
from maas.edge.runtime.server.grammars import json_grammar
from maas.protocol.chat import ChatCompletionRequest, NamedTool, Tool

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


def read_calls(text: str, plan: ToolPlan) -> tuple[str | None, list[Call]]:
    """Return the text beside the calls in an answer, and the calls as the API writes them."""
    if plan.mode == "none":
        return text, []
    if plan.mode == "auto":
        reader = CallReader()
        pieces = [*reader.push(text), *reader.finish()]
        calls = [piece for piece in pieces if not isinstance(piece, str)]
        content = "".join(piece for piece in pieces if isinstance(piece, str))
        return (content or None) if calls else content, calls
    if plan.name is not None:
        return None, [make_call(plan.name, text)]
    try:
        items = json.loads(text)
    except (ValueError, RecursionError):
        # Cut off by max_tokens, or nested too deep.
        return text, []
    return None, [make_call(i["name"], json.dumps(i["parameters"])) for i in items]


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
