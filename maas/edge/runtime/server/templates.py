"""A model's chat template, rendered as transformers renders it.

Source: transformers, docs/chat_templating_writing: what a template may use. Templates come with
models, so they run in a sandbox.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import TemplateError
from jinja2.exceptions import SecurityError

from maas.core.errors import CapabilityMissing, ConfigError, InvalidRequest
from maas.edge.runtime.server.amounts import Amounts, weigh
from maas.edge.runtime.server.sandbox import TemplateSandbox

# A template is its maker's program: what Python itself may raise where one is compiled, or runs.
_COMPILING = (TemplateError, SyntaxError, ValueError, OverflowError, RecursionError)
_RENDERING = (
    *(TemplateError, TypeError, ValueError, AttributeError, ArithmeticError, LookupError),
    # Endless macros.
    RecursionError,
    MemoryError,
)
_SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token")

# The longest body there may be takes a fifth of it.
_MAX_RENDER_S = 5.0
_MAX_INDENT = 16
_MAX_FORM = 1000


class ChatTemplate:
    """Turns messages into a prompt.

    Args:
        source: The template; none: the model has no chat.
        special: Its special tokens by name.
    """

    def __init__(self, source: str | None, special: Mapping[str, str]) -> None:
        self._special = dict(special)
        environment = TemplateSandbox()
        environment.filters["tojson"] = _json_maker(environment.amounts)
        environment.globals["raise_exception"] = _raiser(environment.amounts)
        environment.globals["strftime_now"] = _now
        try:
            self._template = None if source is None else environment.compiled(source)
        except _COMPILING as error:
            raise ConfigError(f"the chat template is wrong: {error}") from error

    @property
    def exists(self) -> bool:
        """Whether the model has one."""
        return self._template is not None

    def render(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None
    ) -> str:
        """Return the prompt that asks for the next answer.

        Raises:
            CapabilityMissing: The model has no chat template.
            InvalidRequest: The template refuses these messages.
        """
        if self._template is None:
            raise CapabilityMissing("this model has no chat template: use /v1/completions")
        try:
            return self._template.render(
                _MAX_RENDER_S,
                messages=messages,
                tools=tools,
                add_generation_prompt=True,
                **self._special,
            )
        except _RENDERING as error:
            raise InvalidRequest(
                f"the chat template refuses these messages: {error}", param="messages"
            ) from error


def load_template(folder: Path) -> ChatTemplate:
    """Read the chat template of a bundle's folder.

    Raises:
        ConfigError: It, or what else is said of the tokenizer, cannot be read.
    """
    path, own = folder / "tokenizer_config.json", folder / "chat_template.jinja"
    try:
        config: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.exists() else {}
        special = {name: _text(config[name]) for name in _SPECIAL if config.get(name)}
        source = config.get("chat_template")
        if isinstance(source, list):
            source = next((item["template"] for item in source if item["name"] == "default"), None)
        if source is not None and not isinstance(source, str):
            raise TypeError("chat_template is no text")
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(f"{path}: cannot be read: {error!r}") from error
    try:
        return ChatTemplate(own.read_text("utf-8") if own.exists() else source, special)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{own}: cannot be read: {error}") from error


def _text(token: Any) -> str:
    return str(token["content"]) if isinstance(token, dict) else str(token)


def _json_maker(amounts: Amounts) -> Callable[..., str]:
    def to_json(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        if indent is not None and not indent <= _MAX_INDENT:
            raise SecurityError(f"tojson indents by {_MAX_INDENT} at most")
        # Without the escapes of HTML that jinja2's own filter adds.
        encoder = json.JSONEncoder(
            ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
        )
        weigh(value)
        if indent is None and separators is None:
            return amounts.counted(encoder.encode(value))
        # Indents and separators make any amount of little: it is counted as it comes.
        return amounts.joined(encoder.iterencode(value))

    return to_json


def _raiser(amounts: Amounts) -> Callable[[Any], NoReturn]:
    def refuse(message: Any) -> NoReturn:
        raise TemplateError(amounts.text(message))

    return refuse


def _now(form: str) -> str:
    # It may take hundreds of bytes for each character.
    if len(form) > _MAX_FORM:
        raise SecurityError(f"a form of dates has {_MAX_FORM} characters at most")
    return datetime.now(UTC).strftime(form)
