"""How many tokens a request can take: a bound that costs nothing, and the exact count.

A token is at least one byte, so the bytes of the texts bound their tokens. That is enough while a
limit is far away. Near it, the prompt is rendered and tokenised as the engine will do it.
"""

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import msgspec
from jinja2 import TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from maas.gateway.relay.length import TEMPLATE_TOKENS, count_added, count_tokens
from maas.gateway.relay.requests import EngineRequest
from maas.gateway.relay.snapshot import ModelEntry
from maas.protocol.chat import ChatCompletionRequest

_DEFAULT_CONTEXT = 2**17
# Templates may write JSON with indents: so many tokens a byte at most.
_INDENTED = 4
# What a tokenizer may put around a prompt that is not a chat: a token before it and one after.
_ADDED_TOKENS = 2


_encode = msgspec.json.Encoder().encode
# A template is code of somebody else.
_TEMPLATE_FAILURES = (
    TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)


class _AnswerMessage(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    text: str | None = None
    message: _AnswerMessage | None = None


class _Answer(msgspec.Struct):
    choices: list[_Choice] = []


_answer_decoder = msgspec.json.Decoder(_Answer)


@dataclass(frozen=True)
class TokenBound:
    """The most tokens that a request can take."""

    input_tokens: int
    output_tokens: int


def quick_bound(request: EngineRequest, entry: ModelEntry) -> TokenBound:
    """Return a bound that no request passes, from sizes alone."""
    body = request.body
    num_bytes = 0
    if isinstance(body, ChatCompletionRequest):
        # Whatever a message has may become text of the prompt. JSON is never shorter than it.
        num_bytes += len(_encode(body.messages)) + TEMPLATE_TOKENS
        if body.tools:
            num_bytes += _INDENTED * len(_encode(body.tools))
        if body.response_format is not None:
            num_bytes += _INDENTED * len(_encode(body.response_format))
    else:
        for text in request.texts:
            num_bytes += len(text) if text.isascii() else len(text.encode())
        num_bytes += _ADDED_TOKENS * len(request.texts)
    return _bounded(request, entry, num_bytes + sum(request.prompt_lengths))


def exact_bound(request: EngineRequest, entry: ModelEntry) -> TokenBound:
    """Return the bound with the prompt's tokens counted; blocks for as long as that takes."""
    path = entry.facts.tokenizer_path
    if path is None or not path.exists() or not request.texts:
        return quick_bound(request, entry)
    limit = entry.max_model_len or _DEFAULT_CONTEXT
    texts: Sequence[str] = request.texts
    if isinstance(request.body, ChatCompletionRequest):
        rendered = render_chat(path.parent, request.body)
        if rendered is None:
            return quick_bound(request, entry)
        texts = (rendered,)
    num_added = 0 if request.is_one_prompt else count_added(path) * len(texts)
    counted = count_tokens(path, tuple(texts), limit=limit * max(len(texts), 1))
    return _bounded(request, entry, counted + num_added)


def _bounded(request: EngineRequest, entry: ModelEntry, num_input: int) -> TokenBound:
    context = entry.max_model_len or _DEFAULT_CONTEXT
    num_prompts = request.num_prompts
    most_input = context * num_prompts
    # How many tokens an image makes, only its engine knows.
    num_input = most_input if _has_media(request) else min(num_input, most_input)
    num_answers = (getattr(request.body, "n", None) or 1) * num_prompts
    most = request.max_answer_tokens
    if most is None:
        most = max(context - num_input // num_prompts, 0)
    return TokenBound(num_input, most * num_answers)


def _has_media(request: EngineRequest) -> bool:
    body = request.body
    return isinstance(body, ChatCompletionRequest) and any(
        part.image_url is not None or part.input_audio is not None
        for message in body.messages
        if isinstance(message.content, list)
        for part in message.content
    )


def render_chat(model_dir: Path, body: ChatCompletionRequest) -> str | None:
    """Return a chat as the model's template writes it; none where that cannot be done here."""
    template = _template(model_dir)
    if template is None:
        return None
    messages: list[dict[str, Any]] = msgspec.to_builtins(body.messages)
    tools: list[dict[str, Any]] | None = msgspec.to_builtins(body.tools) if body.tools else None
    try:
        return template.render(
            messages=[_as_templates_read(message) for message in messages],
            tools=tools,
            add_generation_prompt=True,
            **_special_tokens(model_dir),
        )
    except _TEMPLATE_FAILURES:
        return None


def _as_templates_read(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return a message as engines hand it to a template."""
    read = {name: value for name, value in message.items() if value is not None}
    parts = read.get("content")
    if isinstance(parts, list):
        texts = [part.get("text") or "" for part in cast("list[dict[str, Any]]", parts)]
        read["content"] = "\n".join(texts)
    for call in read.get("tool_calls", ()):
        with contextlib.suppress(ValueError):
            call["function"]["arguments"] = json.loads(call["function"]["arguments"])
    return read


def count_answer(body: bytes, tokenizer: Path | None) -> int:
    """Return how many tokens an answer has whose engine did not say; blocks meanwhile.

    Args:
        body: A whole answer as JSON.
        tokenizer: Of the model; without one, four bytes count as a token.
    """
    try:
        answer = _answer_decoder.decode(body)
    except msgspec.DecodeError:
        return 0
    texts = [
        text
        for choice in answer.choices
        for text in (choice.text, choice.message.content if choice.message else None)
        if text
    ]
    if tokenizer is None or not tokenizer.exists():
        return sum(-(-len(text.encode()) // 4) for text in texts)
    return count_tokens(tokenizer, tuple(texts), limit=_DEFAULT_CONTEXT)


@lru_cache(maxsize=32)
def _template(model_dir: Path) -> Any:
    """Return the compiled template, as transformers compiles it."""
    source = _template_source(model_dir)
    if source is None:
        return None
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
    )
    cast("Any", environment).filters["tojson"] = _to_json
    functions = {"raise_exception": _refuse, "strftime_now": _now}
    return environment.from_string(source, globals=functions)


def _template_source(model_dir: Path) -> str | None:
    file = model_dir / "chat_template.jinja"
    if file.exists():
        return file.read_text(encoding="utf-8")
    template = _tokenizer_config(model_dir).get("chat_template")
    return template if isinstance(template, str) else None


@lru_cache(maxsize=32)
def _special_tokens(model_dir: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in _tokenizer_config(model_dir).items():
        if name.endswith("_token"):
            text = (
                cast("dict[str, Any]", value).get("content") if isinstance(value, dict) else value
            )
            if isinstance(text, str):
                found[name] = text
    return found


def _tokenizer_config(model_dir: Path) -> dict[str, Any]:
    path = model_dir / "tokenizer_config.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _to_json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _refuse(message: str) -> None:
    raise TemplateError(message)


def _now(form: str) -> str:
    return datetime.now().astimezone().strftime(form)
