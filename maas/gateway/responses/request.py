"""Reads the body of ``POST /v1/responses`` and refuses what is not offered, by name."""

import re
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from maas.core.errors import (
    CapabilityMissing,
    ForbiddenField,
    InvalidRequest,
    MalformedBody,
    UnknownField,
)
from maas.protocol.fields import FORBIDDEN_FIELDS
from maas.protocol.responses import (
    AllowedToolChoice,
    FunctionCallItem,
    FunctionCallOutputItem,
    FunctionTool,
    InputItem,
    MessageItem,
    NamedToolChoice,
    ReasoningItem,
    ResponsesRequest,
)

T = TypeVar("T")

NEEDS_STATE = ("previous_response_id", "conversation", "background", "prompt")
"""Fields that only mean something where responses are kept."""

NOT_OFFERED = frozenset(
    {
        "access_programs",
        "background_options",
        "context_management",
        "image",
        "moderation",
        "prompt_cache_options",
        "prompt_cache_retention",
    }
)
"""Fields OpenAI has and this platform does not: named as such, not as unknown."""

INCLUDABLE = frozenset({"message.output_text.logprobs", "reasoning.encrypted_content"})
"""What ``include`` may name. Reasoning is returned in the clear, so its encrypted form,
which exists for callers who cannot see it, is accepted and adds nothing."""

_ITEMS: dict[str, type[InputItem]] = {
    "message": MessageItem,
    "function_call": FunctionCallItem,
    "function_call_output": FunctionCallOutputItem,
    "reasoning": ReasoningItem,
}
_UNKNOWN_FIELD = re.compile(r"unknown field `(.*?)`", re.DOTALL)
_AT = re.compile(r" - at `(?:key in )?\$\.?(.*)`$", re.DOTALL)


class _Kind(msgspec.Struct):
    """Just enough of an item or a tool to know what it claims to be."""

    type: str | None = None
    role: str | None = None


@dataclass(frozen=True)
class ParsedRequest:
    """A request whose every part has been decoded and checked."""

    body: ResponsesRequest
    items: tuple[InputItem, ...]
    tools: tuple[FunctionTool, ...]

    @property
    def wants_logprobs(self) -> bool:
        """Whether the caller asked for log probabilities."""
        return "message.output_text.logprobs" in (self.body.include or [])


def parse_request(raw: bytes) -> ParsedRequest:
    """Decode and check a request body.

    Raises:
        MalformedBody: it is not JSON, or nested too deep.
        UnknownField: it has a field the API does not have.
        ForbiddenField: it has a field that only the platform may set.
        CapabilityMissing: it asks for something this platform does not do.
        InvalidRequest: a value is of the wrong type or out of range.
    """
    body = _decode(raw, ResponsesRequest, at="")
    _refuse_state(body)
    _refuse_unsupported(body)
    tools = tuple(_tool(item, at=f"tools[{i}]") for i, item in enumerate(body.tools or []))
    _check_tool_choice(body, {tool.name for tool in tools})
    if isinstance(body.input, str):
        items: tuple[InputItem, ...] = (MessageItem(role="user", content=body.input),)
    else:
        items = tuple(_item(item, at=f"input[{i}]") for i, item in enumerate(body.input))
    if not items:
        raise InvalidRequest("input is empty; send a text or at least one item", param="input")
    _check_calls(items)
    return ParsedRequest(body=body, items=items, tools=tools)


def _decode(raw: bytes | msgspec.Raw, kind: type[T], *, at: str) -> T:
    try:
        return msgspec.json.decode(raw, type=kind)
    except msgspec.ValidationError as error:
        raise _refusal(str(error), at=at) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise MalformedBody(f"the body is not valid JSON: {error}") from None
    except RecursionError:
        raise MalformedBody("the body is nested too deep") from None


def _refusal(text: str, *, at: str) -> InvalidRequest:
    """Turn msgspec's sentence into one that names the field as the caller wrote it."""
    found = _AT.search(text)
    inner = found.group(1) if found else ""
    where = _join(at, inner)
    what = text[: found.start()] if found else text
    unknown = _UNKNOWN_FIELD.search(what)
    if unknown is None:
        return InvalidRequest(f"{where or 'the body'}: {what}", param=where or None)
    name = unknown.group(1)
    param = _join(where, name)
    if not where and name in NOT_OFFERED:
        return CapabilityMissing(f"{name} is not offered here; leave it out", param=name)
    if name in FORBIDDEN_FIELDS:
        return ForbiddenField(
            f"{param} reaches past this API into the engine and is refused", param=param
        )
    return UnknownField(f"{param} is not a field of the Responses API", param=param)


def _join(outer: str, inner: str) -> str:
    if not outer or not inner:
        return outer or inner
    return outer + inner if inner.startswith("[") else f"{outer}.{inner}"


def _refuse_state(body: ResponsesRequest) -> None:
    for name in NEEDS_STATE:
        if getattr(body, name) in (None, False):
            continue
        raise CapabilityMissing(
            f"{name} needs stored state, which is not offered yet; send the whole "
            "conversation in input instead",
            param=name,
        )
    if body.store:
        raise CapabilityMissing(
            "store: true needs stored state, which is not offered yet; send store: false or "
            "leave it out (nothing is kept)",
            param="store",
        )


def _refuse_unsupported(body: ResponsesRequest) -> None:
    for name in body.include or []:
        if name not in INCLUDABLE:
            raise CapabilityMissing(
                f"include: {name!r} is not offered; there are: {', '.join(sorted(INCLUDABLE))}",
                param="include",
            )
    if body.top_logprobs and "message.output_text.logprobs" not in (body.include or []):
        raise InvalidRequest(
            "top_logprobs needs include: ['message.output_text.logprobs']", param="top_logprobs"
        )
    if body.truncation == "auto":
        raise CapabilityMissing(
            "truncation: 'auto' is not offered; leave it out and shorten the input yourself",
            param="truncation",
        )
    if body.service_tier not in (None, "auto", "default"):
        raise CapabilityMissing(
            f"service_tier: {body.service_tier!r} is not offered; there are: 'auto', 'default'",
            param="service_tier",
        )
    _refuse_styles(body)


def _refuse_styles(body: ResponsesRequest) -> None:
    if body.text is not None and body.text.verbosity not in (None, "medium"):
        raise CapabilityMissing(
            "text.verbosity is not offered; leave it out and say it in instructions",
            param="text.verbosity",
        )
    if body.reasoning is not None:
        for name in ("summary", "generate_summary"):
            if getattr(body.reasoning, name) not in (None, "auto"):
                raise CapabilityMissing(
                    f"reasoning.{name} is not offered beyond 'auto': reasoning is returned whole",
                    param=f"reasoning.{name}",
                )
    if body.stream_options is not None and body.stream_options.include_obfuscation:
        raise CapabilityMissing(
            "stream_options.include_obfuscation is not offered; leave it out",
            param="stream_options.include_obfuscation",
        )


def _tool(raw: msgspec.Raw, *, at: str) -> FunctionTool:
    kind = _decode(raw, _Kind, at=at).type
    if kind is None:
        raise InvalidRequest(f"{at}.type is missing; it must be 'function'", param=f"{at}.type")
    if kind != "function":
        raise CapabilityMissing(
            f"{at}: tools of type {kind!r} are not offered; only 'function' is", param=f"{at}.type"
        )
    return _decode(raw, FunctionTool, at=at)


def _check_tool_choice(body: ResponsesRequest, names: set[str]) -> None:
    choice = body.tool_choice
    if isinstance(choice, NamedToolChoice):
        wanted = {choice.name}
    elif isinstance(choice, AllowedToolChoice):
        wanted = {tool.name for tool in choice.tools}
    else:
        if choice == "required" and not names:
            raise InvalidRequest(
                "tool_choice: 'required' needs at least one tool", param="tool_choice"
            )
        return
    missing = sorted(wanted - names)
    if missing:
        raise InvalidRequest(
            f"tool_choice names {missing[0]!r}, which is not among tools", param="tool_choice"
        )


def _item(raw: msgspec.Raw, *, at: str) -> InputItem:
    claim = _decode(raw, _Kind, at=at)
    kind = claim.type or ("message" if claim.role is not None else "item_reference")
    if kind == "item_reference":
        raise CapabilityMissing(
            f"{at}: an item_reference needs stored state, which is not offered yet; send the "
            "item itself",
            param=at,
        )
    found = _ITEMS.get(kind)
    if found is None:
        raise CapabilityMissing(
            f"{at}: items of type {kind!r} are not offered; there are: {', '.join(_ITEMS)}",
            param=f"{at}.type",
        )
    return _decode(raw, found, at=at)


def _check_calls(items: tuple[InputItem, ...]) -> None:
    """Every call has one output, after it: chat templates break on anything else."""
    open_calls: dict[str, int] = {}
    seen: set[str] = set()
    for i, item in enumerate(items):
        if isinstance(item, FunctionCallItem):
            if item.call_id in seen:
                raise InvalidRequest(
                    f"input[{i}]: call_id {item.call_id!r} is used twice",
                    param=f"input[{i}].call_id",
                )
            seen.add(item.call_id)
            open_calls[item.call_id] = i
        elif (
            isinstance(item, FunctionCallOutputItem) and open_calls.pop(item.call_id, None) is None
        ):
            raise InvalidRequest(
                f"input[{i}]: no unanswered function_call with call_id {item.call_id!r} before it",
                param=f"input[{i}].call_id",
            )
    for call_id, i in open_calls.items():
        raise InvalidRequest(
            f"input[{i}]: no function_call_output for call_id {call_id!r}", param=f"input[{i}]"
        )
