"""Translates a Responses request into the body of a chat completion.

Only fields that every engine knows are written, so one request means the same on each.
"""

from typing import Any

import msgspec

from maas.gateway.responses.request import ParsedRequest
from maas.protocol.responses import (
    AllowedToolChoice,
    FunctionCallItem,
    FunctionCallOutputItem,
    FunctionTool,
    InputItem,
    JsonObjectFormat,
    JsonSchemaFormat,
    MessageItem,
    NamedToolChoice,
    PastRefusal,
    ResponsesRequest,
)

Message = dict[str, Any]


def chat_body(request: ParsedRequest) -> bytes:
    """Return the JSON body of the chat completion that answers this request."""
    body = request.body
    chat: dict[str, Any] = {
        "model": body.model,
        "messages": chat_messages(request.items, instructions=body.instructions),
        "stream": bool(body.stream),
    }
    if body.stream:
        chat["stream_options"] = {"include_usage": True}
    _put(chat, "max_tokens", body.max_output_tokens)
    _put(chat, "temperature", body.temperature)
    _put(chat, "top_p", body.top_p)
    _put(chat, "user", body.user)
    _put(chat, "reasoning_effort", body.reasoning and body.reasoning.effort)
    _put(chat, "response_format", _response_format(body))
    if request.wants_logprobs:
        chat["logprobs"] = True
        chat["top_logprobs"] = body.top_logprobs or 0
    _put_tools(chat, request)
    return msgspec.json.encode(chat)


def chat_messages(items: tuple[InputItem, ...], *, instructions: str | None) -> list[Message]:
    """Return the items as chat messages.

    Instructions and the system messages that lead are joined into one, because many chat
    templates take a single system message, at the start. Calls that follow a message of
    the assistant, or each other, become one assistant message, as templates expect.
    Reasoning is not replayed: engines disagree on how a past thought is written.
    """
    system = [instructions] if instructions else []
    messages: list[Message] = []
    for item in items:
        match item:
            case MessageItem():
                role = "system" if item.role == "developer" else item.role
                if role == "system" and not messages:
                    system.append(_text(item))
                else:
                    messages.append({"role": role, "content": _text(item)})
            case FunctionCallItem():
                _add_call(messages, item)
            case FunctionCallOutputItem():
                messages.append(_tool_message(item))
            case _:
                continue
    if system:
        messages.insert(0, {"role": "system", "content": "\n\n".join(system)})
    return messages


def _put(chat: dict[str, Any], name: str, value: Any) -> None:
    if value is not None:
        chat[name] = value


def _text(item: MessageItem) -> str:
    if isinstance(item.content, str):
        return item.content
    texts = [part.refusal if isinstance(part, PastRefusal) else part.text for part in item.content]
    # What the model wrote is one text cut into parts; what people wrote is separate texts.
    return ("" if item.role == "assistant" else "\n").join(texts)


def _add_call(messages: list[Message], item: FunctionCallItem) -> None:
    call = {
        "id": item.call_id,
        "type": "function",
        "function": {"name": item.name, "arguments": item.arguments},
    }
    if messages and messages[-1]["role"] == "assistant":
        messages[-1].setdefault("tool_calls", []).append(call)
    else:
        messages.append({"role": "assistant", "content": None, "tool_calls": [call]})


def _tool_message(item: FunctionCallOutputItem) -> Message:
    output = item.output
    text = output if isinstance(output, str) else "\n".join(part.text for part in output)
    return {"role": "tool", "tool_call_id": item.call_id, "content": text}


def _response_format(body: ResponsesRequest) -> dict[str, Any] | None:
    shape = body.text.format if body.text is not None else None
    if isinstance(shape, JsonObjectFormat):
        return {"type": "json_object"}
    if not isinstance(shape, JsonSchemaFormat):
        return None
    schema: dict[str, Any] = {"name": shape.name, "schema": shape.schema}
    _put(schema, "description", shape.description)
    _put(schema, "strict", shape.strict)
    return {"type": "json_schema", "json_schema": schema}


def _put_tools(chat: dict[str, Any], request: ParsedRequest) -> None:
    if not request.tools:
        return
    tools = request.tools
    choice = request.body.tool_choice
    if isinstance(choice, AllowedToolChoice):
        allowed = {tool.name for tool in choice.tools}
        tools = tuple(tool for tool in tools if tool.name in allowed)
        _put(chat, "tool_choice", choice.mode)
    elif isinstance(choice, NamedToolChoice):
        chat["tool_choice"] = {"type": "function", "function": {"name": choice.name}}
    else:
        _put(chat, "tool_choice", choice)
    chat["tools"] = [_chat_tool(tool) for tool in tools]
    _put(chat, "parallel_tool_calls", request.body.parallel_tool_calls)


def _chat_tool(tool: FunctionTool) -> dict[str, Any]:
    function: dict[str, Any] = {"name": tool.name}
    _put(function, "description", tool.description)
    _put(function, "parameters", tool.parameters)
    _put(function, "strict", tool.strict)
    return {"type": "function", "function": function}
