"""One question for each thing an engine may be able to do, and for things none is asked to do."""

from dataclasses import fields
from typing import Any

from maas.engines.contract import EngineCapabilities

CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
_USER = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}
_SCHEMA = {"type": "object", "properties": {"n": {"enum": [1]}}, "required": ["n"]}
_TOOL = {"type": "function", "function": {"name": "f", "parameters": _SCHEMA}}
_FORM = {"type": "json_schema", "json_schema": {"name": "x", "schema": _SCHEMA}}

# By the flag's name: where, and what.
QUESTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": (CHAT, _USER),
    "completions": (COMPLETIONS, {"prompt": "hello", "max_tokens": 4}),
    "embeddings": (EMBEDDINGS, {"input": "hello"}),
    "streaming": (CHAT, _USER | {"stream": True}),
    "tools": (CHAT, _USER | {"tools": [_TOOL]}),
    "structured_output": (CHAT, _USER | {"response_format": _FORM}),
    "logprobs": (CHAT, _USER | {"logprobs": True, "top_logprobs": 2}),
    "n": (CHAT, _USER | {"n": 2}),
    "seed": (CHAT, _USER | {"seed": 3}),
    "logit_bias": (CHAT, _USER | {"logit_bias": {"5": 1.0}}),
}
# Of how the gateway speaks to the engine; nobody asks for these in a request.
NOT_ASKED = frozenset(
    {
        *("stream_usage", "max_completion_tokens", "done_sentinel", "cache_salt"),
        *("abort_on_disconnect", "runtime_adapters", "reports_load"),
    }
)
FLAGS = tuple(field.name for field in fields(EngineCapabilities))

_PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
_SOUND = {"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}}


def _with_part(part: dict[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [part]}], "max_tokens": 4}


# What other servers take, and this API does not: name in the message, where, and what.
NOT_OFFERED: tuple[tuple[str, str, dict[str, Any]], ...] = (
    *(
        (name, CHAT, _USER | {name: value})
        for name, value in {
            "prompt_logprobs": 1,
            "echo": True,
            "use_beam_search": True,
            "best_of": 2,
            "guided_json": _SCHEMA,
            "chat_template": "x",
            "functions": [],
            "prediction": {},
            "audio": {},
            "store": True,
        }.items()
    ),
    *(
        (name, COMPLETIONS, {"prompt": "hello", "max_tokens": 4, name: value})
        for name, value in {
            "prompt_logprobs": 1,
            "echo": True,
            "suffix": "x",
            "best_of": 2,
            "use_beam_search": True,
            "length_penalty": 2.0,
        }.items()
    ),
    ("modalities", CHAT, _USER | {"modalities": ["audio"]}),
    ("text only", CHAT, _with_part(_PICTURE)),
    ("text only", CHAT, _with_part(_SOUND)),
)
