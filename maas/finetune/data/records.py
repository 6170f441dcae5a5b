"""One line of training data: parsed, and what is wrong in it."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from maas.finetune.recipe import Method

_ROLES = ("system", "developer", "user", "assistant", "tool")
_MAX_DEPTH = 64
MAX_MESSAGES = 2048
_STRING = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
_BRACKET = re.compile(r"[\[{\]}]")
_MESSAGE_KEYS = frozenset(
    {"role", "content", "name", "weight", "tool_calls", "tool_call_id", "refusal"}
)
_TOP_KEYS: dict[str, frozenset[str]] = {
    "supervised": frozenset({"messages", "tools", "parallel_tool_calls"}),
    "dpo": frozenset({"input", "preferred_output", "non_preferred_output"}),
    "pretrain": frozenset({"text"}),
}
Record = Mapping[str, Any]


class Finding(NamedTuple):
    """Something wrong in a line."""

    code: str
    field: str
    message: str
    fix: str
    is_warning: bool = False


class _Repeated(ValueError):
    """A key occurs twice."""


class _NotANumber(ValueError):
    """NaN or an infinity."""


def parse(raw: bytes, *, max_bytes: int, is_first: bool) -> dict[str, Any] | Finding:
    """Return a line's object, or what keeps it from being one."""
    if len(raw) > max_bytes:
        return Finding(
            "line_too_long", "", f"the line has more than {max_bytes} bytes", "split the example"
        )
    if raw.startswith(b"\xef\xbb\xbf"):
        if not is_first:
            return Finding("bom", "", "a byte order mark in mid file", "remove it")
        raw = raw[3:]
    if b"\0" in raw:
        return Finding("nul", "", "the line holds NUL bytes", "remove them")
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        return Finding("bad_utf8", "", f"byte {error.start} is not UTF-8", "save it as UTF-8")
    if _depth(text) > _MAX_DEPTH:
        return Finding("too_deep", "", f"nested more than {_MAX_DEPTH} deep", "flatten it")
    value = _loaded(text)
    if isinstance(value, Finding):
        return value
    if not isinstance(value, dict):
        return Finding("not_an_object", "", "the line is no JSON object", 'want {"messages": ...}')
    # Only an escape can write one.
    if "\\ud" in text.lower() and _has_half_character(value):
        return Finding("half_character", "", "holds half a character (a lone surrogate)", "mend it")
    return value


def _has_half_character(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    return False


def _loaded(text: str) -> Any:
    """Return what a text says, or what is wrong with it as JSON."""
    try:
        return json.loads(
            text,
            object_pairs_hook=_once,
            parse_constant=_refuse_constant,
            parse_float=_finite,
        )
    except _Repeated as error:
        return Finding("repeated_key", str(error), f"the key {error} occurs twice", "keep one")
    except _NotANumber as error:
        return Finding("not_json", "", f"{error} is no number in JSON", "write it as a string")
    except json.JSONDecodeError as error:
        return Finding(
            "not_json", "", f"not JSON: {error.msg} at column {error.colno}", "mend the line"
        )
    except (ValueError, RecursionError):
        return Finding("not_json", "", "a number has too many digits", "write it as a string")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise _Repeated(key)
        found[key] = value
    return found


def _finite(digits: str) -> float:
    number = float(digits)
    if number in (float("inf"), float("-inf")):
        raise _NotANumber(digits[:40])
    return number


def _refuse_constant(name: str) -> Any:
    raise _NotANumber(name)


def _depth(text: str) -> int:
    """Return how deep a JSON text nests, at most; brackets in strings count for nothing."""
    if text.count("[") + text.count("{") <= _MAX_DEPTH:
        return 0
    deepest = depth = 0
    for bracket in _BRACKET.findall(_STRING.sub("", text)):
        depth += 1 if bracket in "[{" else -1
        deepest = max(deepest, depth)
    return deepest


def findings(record: Record, method: Method) -> Iterator[Finding]:
    """Yield what is wrong with a record, all of it."""
    for key in sorted(record.keys() - _TOP_KEYS[method]):
        wanted = ", ".join(sorted(_TOP_KEYS[method]))
        yield Finding("unknown_field", key, f"{key!r} is not known; want {wanted}", "remove it")
    match method:
        case "supervised":
            yield from _conversation(record, "", must_answer=True)
        case "dpo":
            yield from _preference(record)
        case "pretrain":
            yield from _text(record)


def _text(record: Record) -> Iterator[Finding]:
    text = record.get("text")
    if not isinstance(text, str) or not text.strip():
        yield Finding("no_text", "text", "want text, a string with something in it", "add it")


def _preference(record: Record) -> Iterator[Finding]:
    given = record.get("input")
    if not isinstance(given, Mapping):
        yield Finding("no_input", "input", "want an object with messages", "add it")
    else:
        for key in sorted(given.keys() - _TOP_KEYS["supervised"]):
            yield Finding("unknown_field", f"input.{key}", f"{key!r} is not known", "remove it")
        yield from _conversation(given, "input.", must_answer=False)
    known = _names(given.get("tools")) if isinstance(given, Mapping) else None
    for name in ("preferred_output", "non_preferred_output"):
        output = record.get(name)
        if not isinstance(output, list) or not output:
            yield Finding("no_output", name, "want a list with one assistant message", "add it")
            continue
        last = output[-1]
        if not isinstance(last, Mapping) or last.get("role") != "assistant":
            yield Finding("no_answer", name, "its last message is not the assistant's", "add it")
        for index, message in enumerate(output):
            yield from _message(message, f"{name}[{index}]")
        if all(isinstance(message, Mapping) for message in output):
            yield from _calls(output, name, known)
    if record.get("preferred_output") == record.get("non_preferred_output"):
        yield Finding("same_outputs", "", "both outputs are the same", "remove the line")


def _conversation(record: Record, prefix: str, *, must_answer: bool) -> Iterator[Finding]:
    messages = record.get("messages")
    at = f"{prefix}messages"
    if not isinstance(messages, list) or not messages:
        yield Finding("no_messages", at, "want a list of messages", "add it")
        return
    known = yield from _tools(record.get("tools"), f"{prefix}tools")
    if len(messages) > MAX_MESSAGES:
        text = f"{len(messages)} messages; at most {MAX_MESSAGES} in an example"
        yield Finding("too_many_messages", at, text, "split the example")
        return
    if not isinstance(record.get("parallel_tool_calls", True), bool):
        yield Finding("bad_tools", f"{prefix}parallel_tool_calls", "want true or false", "mend it")
    for index, message in enumerate(messages):
        yield from _message(message, f"{at}[{index}]")
    whole = [message for message in messages if isinstance(message, Mapping)]
    if len(whole) == len(messages):
        yield from _order(whole, at, must_answer=must_answer)
        yield from _calls(whole, at, known)


def _tools(tools: Any, at: str) -> Iterator[Any]:
    """Yield what is wrong with the tools; return their names."""
    if tools is None:
        return None
    names: set[str] = set()
    if not isinstance(tools, list):
        yield Finding("bad_tools", at, "want a list of tools", "mend it")
        return names
    for index, tool in enumerate(tools):
        function = tool.get("function") if isinstance(tool, Mapping) else None
        name = function.get("name") if isinstance(function, Mapping) else None
        if not isinstance(name, str) or not name:
            yield Finding(
                "bad_tools", f"{at}[{index}]", "want type function and a function.name", "mend it"
            )
            continue
        if name in names:
            yield Finding("bad_tools", f"{at}[{index}]", f"{name!r} is there twice", "keep one")
        names.add(name)
        parameters = function.get("parameters") if isinstance(function, Mapping) else None
        if parameters is not None and not isinstance(parameters, Mapping):
            field = f"{at}[{index}].function.parameters"
            yield Finding("bad_tools", field, "want a JSON schema, an object", "mend it")
    return names


def _names(tools: Any) -> set[str] | None:
    """Return the names of tools, whatever is wrong with them."""
    if not isinstance(tools, list):
        return None
    functions = [tool.get("function") for tool in tools if isinstance(tool, Mapping)]
    names = [function.get("name") for function in functions if isinstance(function, Mapping)]
    return {name for name in names if isinstance(name, str)}


def _message(message: Any, at: str) -> Iterator[Finding]:
    if not isinstance(message, Mapping):
        yield Finding("bad_message", at, "want an object with role and content", "mend it")
        return
    for key in sorted(message.keys() - _MESSAGE_KEYS):
        yield Finding("unknown_field", f"{at}.{key}", f"{key!r} is not known here", "remove it")
    role = message.get("role")
    if role not in _ROLES:
        wanted = ", ".join(_ROLES)
        yield Finding("bad_role", f"{at}.role", f"role is {role!r}; want {wanted}", "rename it")
        return
    if not isinstance(message.get("name", ""), str):
        yield Finding("bad_message", f"{at}.name", "want a string", "mend it")
    weight = message.get("weight")
    if weight is not None and (role != "assistant" or weight not in (0, 1) or weight is True):
        yield Finding(
            "bad_weight", f"{at}.weight", "want 0 or 1, on assistant messages only", "remove it"
        )
    content = message.get("content")
    if content is None and role == "assistant" and message.get("tool_calls"):
        return
    yield from _content(content, f"{at}.content", role)


def _content(content: Any, at: str, role: str) -> Iterator[Finding]:
    if isinstance(content, list):
        for index, part in enumerate(content):
            kind = part.get("type") if isinstance(part, Mapping) else None
            if kind != "text":
                yield Finding(
                    "not_text",
                    f"{at}[{index}]",
                    f"a part of type {kind!r}; only text is trained",
                    "remove it",
                )
            elif not isinstance(part.get("text"), str):
                yield Finding("bad_content", f"{at}[{index}].text", "want a string", "mend it")
        if content:
            return
    elif not isinstance(content, str):
        kind = type(content).__name__
        yield Finding("bad_content", at, f"want a string, not {kind}", "write a string")
        return
    if isinstance(content, list) or not content.strip():
        # An empty answer of a tool, or an empty instruction, is odd and harmless.
        is_warning = role in {"tool", "system", "developer"}
        yield Finding("empty_turn", at, "the turn is empty", "fill or remove it", is_warning)


def _order(messages: list[Record], at: str, *, must_answer: bool) -> Iterator[Finding]:
    roles = [str(message.get("role")) for message in messages]
    for index, role in enumerate(roles):
        if role in {"system", "developer"} and index > 0:
            yield Finding(
                "late_instruction", f"{at}[{index}]", f"{role} comes after turns", "put it first"
            )
    answers = [m for m in messages if m.get("role") == "assistant" and m.get("weight") != 0]
    if must_answer and not answers:
        yield Finding("no_answer", at, "no assistant turn that is learned", "add one")
    if must_answer and roles and roles[-1] != "assistant":
        yield Finding(
            "unanswered", at, f"ends with {roles[-1]}, which teaches nothing", "answer it", True
        )
    first = next((role for role in roles if role not in {"system", "developer"}), None)
    if first == "assistant":
        yield Finding("no_question", at, "the assistant speaks first", "begin with user")
    for index in range(1, len(roles)):
        if roles[index] == roles[index - 1] == "user":
            yield Finding(
                "two_in_a_row", f"{at}[{index}]", "two user turns in a row", "join them", True
            )
        if roles[index] == roles[index - 1] == "assistant":
            yield Finding(
                "two_in_a_row", f"{at}[{index}]", "two assistant turns in a row", "join them"
            )


def _calls(messages: list[Record], at: str, known: set[str] | None) -> Iterator[Finding]:
    """Yield what is wrong with tool calls and their answers."""
    open_ids: set[str] = set()
    for index, message in enumerate(messages):
        where = f"{at}[{index}]"
        if message.get("role") == "tool":
            answered = message.get("tool_call_id")
            if not isinstance(answered, str) or answered not in open_ids:
                yield Finding(
                    "unknown_call",
                    f"{where}.tool_call_id",
                    f"{answered!r} answers no call before it",
                    "use the id of a call",
                )
            else:
                open_ids.discard(answered)
            continue
        if open_ids:
            calls = ", ".join(sorted(open_ids))
            yield Finding("open_call", where, f"nothing answers {calls}", "add a tool message")
            open_ids = set()
        calls = message.get("tool_calls")
        if calls is None:
            continue
        if message.get("role") != "assistant" or not isinstance(calls, list):
            yield Finding("bad_call", f"{where}.tool_calls", "want a list, on assistant", "mend it")
            continue
        for number, call in enumerate(calls):
            call_id = yield from _call(call, f"{where}.tool_calls[{number}]", known)
            if call_id:
                open_ids.add(call_id)
    # A last turn may call: its answer is not part of what is learned.


def _call(call: Any, at: str, known: set[str] | None) -> Iterator[Any]:
    """Yield what is wrong with a call; return its id."""
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        yield Finding("bad_call", at, "want id, type function and function.name", "mend it")
        return None
    if call.get("type", "function") != "function":
        yield Finding("bad_call", f"{at}.type", "only functions are called", "want function")
    if known is None or function["name"] not in known:
        yield Finding(
            "unknown_tool",
            f"{at}.function.name",
            f"{function['name']!r} is not in tools",
            "add the tool",
        )
    arguments = function.get("arguments")
    try:
        is_object = isinstance(arguments, str) and isinstance(_loaded(arguments), dict)
    except (ValueError, RecursionError):
        is_object = False
    if not is_object:
        yield Finding(
            "bad_arguments",
            f"{at}.function.arguments",
            "want a string that holds a JSON object",
            "encode it",
        )
    call_id = call.get("id")
    if not isinstance(call_id, str) or not call_id:
        yield Finding("bad_call", f"{at}.id", "want an id, a string", "add it")
        return None
    return call_id
