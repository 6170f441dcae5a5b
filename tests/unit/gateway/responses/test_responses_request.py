"""What a Responses request may ask, and how a refusal names what it may not."""

import json
from typing import Any

import pytest

from maas.core.errors import (
    CapabilityMissing,
    ForbiddenField,
    InvalidRequest,
    MaasError,
    MalformedBody,
    UnknownField,
)
from maas.gateway.responses.request import parse_request


def body(**fields: Any) -> bytes:
    return json.dumps({"model": "m", "input": "hi", **fields}).encode()


def refusal(raw: bytes) -> MaasError:
    with pytest.raises(MaasError) as caught:
        parse_request(raw)
    return caught.value


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"store": False, "background": False, "previous_response_id": None, "conversation": None},
        {"tools": None, "tool_choice": None, "include": None, "text": None, "reasoning": None},
        {"service_tier": "auto", "truncation": "disabled", "stream_options": None},
        {"reasoning": {"effort": "high", "summary": "auto"}},
        {"text": {"format": {"type": "text"}, "verbosity": "medium"}},
        {"stream": True, "stream_options": {"include_obfuscation": False}},
    ],
)
def test_what_the_sdk_sends_by_default_is_accepted(fields: dict[str, Any]) -> None:
    assert parse_request(body(**fields)).body.model == "m"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("store", True),
        ("previous_response_id", "resp_1"),
        ("conversation", "conv_1"),
        ("conversation", {"id": "conv_1"}),
        ("background", True),
        ("prompt", {"id": "pmpt_1"}),
    ],
)
def test_stored_state_is_refused_by_name(field: str, value: object) -> None:
    error = refusal(body(**{field: value}))
    assert isinstance(error, CapabilityMissing)
    assert error.context["param"] == field
    assert "not offered yet" in error.message


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"truncation": "auto"}, "truncation"),
        ({"service_tier": "flex"}, "service_tier"),
        ({"include": ["file_search_call.results"]}, "include"),
        ({"text": {"verbosity": "low"}}, "text.verbosity"),
        ({"reasoning": {"summary": "detailed"}}, "reasoning.summary"),
        (
            {"stream_options": {"include_obfuscation": True}},
            "stream_options.include_obfuscation",
        ),
        ({"moderation": {"model": "x"}}, "moderation"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0]"),
        ({"input": [{"id": "msg_1"}]}, "input[0]"),
        ({"input": [{"type": "computer_call", "id": "x"}]}, "input[0].type"),
    ],
)
def test_what_is_not_offered_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    error = refusal(body(**fields))
    assert isinstance(error, CapabilityMissing)
    assert error.context["param"] == param


IMAGE = [{"role": "user", "content": [{"type": "input_image", "image_url": "http://x"}]}]
CALL = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
OUTPUT = {"type": "function_call_output", "call_id": "c", "output": "1"}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": 2.5}, "temperature"),
        ({"top_p": -0.1}, "top_p"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"max_output_tokens": 10**30}, "max_output_tokens"),
        ({"max_output_tokens": "8"}, "max_output_tokens"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"input": []}, "input"),
        ({"input": 3}, "input"),
        ({"input": ["hi"]}, "input[0]"),
        ({"input": IMAGE}, "input[0].content[0].type"),
        ({"input": [{"role": "tool", "content": "x"}]}, "input[0].role"),
        ({"input": [OUTPUT]}, "input[0].call_id"),
        ({"input": [CALL]}, "input[0]"),
        ({"input": [CALL, CALL, OUTPUT]}, "input[1].call_id"),
        ({"input": [CALL, OUTPUT, OUTPUT]}, "input[2].call_id"),
        ({"tools": [{"type": "function", "name": "a b"}]}, "tools[0].name"),
        ({"tools": [{"name": "f"}]}, "tools[0].type"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "name": "f"}}, "tool_choice"),
        ({"text": {"format": {"type": "grammar"}}}, "text.format.type"),
        ({"metadata": {str(i): "v" for i in range(17)}}, "metadata"),
    ],
)
def test_a_wrong_value_is_refused_where_it_stands(fields: dict[str, Any], param: str) -> None:
    error = refusal(body(**fields))
    assert isinstance(error, InvalidRequest)
    assert error.context["param"] == param


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"chat_template": "{{x}}"}, "chat_template"),
        ({"extra_body": {"cache_salt": "x"}}, "extra_body"),
        ({"input": [{"role": "user", "content": "x", "cache_salt": "y"}]}, "input[0].cache_salt"),
        ({"reasoning": {"chat_template_kwargs": {}}}, "reasoning.chat_template_kwargs"),
    ],
)
def test_an_engine_field_is_forbidden_wherever_it_hides(fields: dict[str, Any], param: str) -> None:
    error = refusal(body(**fields))
    assert isinstance(error, ForbiddenField)
    assert error.context["param"] == param


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"seed": 1}, "seed"),
        ({"Model": "other"}, "Model"),
        ({"text": {"format": {"type": "text", "regex": "x"}}}, "text.format.regex"),
        ({"tools": [{"type": "function", "name": "f", "zip": 1}]}, "tools[0].zip"),
    ],
)
def test_an_unknown_field_is_refused_wherever_it_hides(fields: dict[str, Any], param: str) -> None:
    error = refusal(body(**fields))
    assert isinstance(error, UnknownField)
    assert error.context["param"] == param


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b'{"model":"m","input":"hi"} {}',
        b'{"model":"m","input":"\\ud800"}',
        b'{"model":"m","input":"\xff"}',
        b'{"model":"m","input":[{"role":"user","content":"\xff"}]}',
        b'{"model":"m","input":"x","temperature":NaN}',
        b'{"model":"m","input":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"model":"m","input":"x","metadata":' + b'{"a":' * 50_000 + b"1" + b"}" * 50_001,
    ],
)
def test_what_is_not_json_is_refused(raw: bytes) -> None:
    assert isinstance(refusal(raw), InvalidRequest)


def test_broken_json_has_its_own_code() -> None:
    assert isinstance(refusal(b'{"model":'), MalformedBody)


def test_an_escaped_key_is_the_key_it_spells() -> None:
    error = refusal(b'{"model":"m","input":"x","cache_\\u0073alt":"y"}')
    assert isinstance(error, ForbiddenField)
    assert error.context["param"] == "cache_salt"
