"""``POST /v1/chat/completions``: the request, as OpenAI defines it, and nothing beyond.

Unknown fields are refused. What is decoded here is encoded again for the engine, so only
what was checked goes on: a key given twice, or escaped, cannot smuggle anything.
"""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

Temperature = Annotated[float, Meta(ge=0, le=2)]
Share = Annotated[float, Meta(ge=0, le=1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Seed = Annotated[int, Meta(ge=-(2**63) + 1, le=2**63 - 1)]
NumChoices = Annotated[int, Meta(ge=1, le=128)]
NumTokens = Annotated[int, Meta(ge=1, le=2**31 - 1)]
StopText = Annotated[str, Meta(min_length=1, max_length=1024)]
Stop = StopText | Annotated[list[StopText], Meta(max_length=4)]
Name = Annotated[str, Meta(max_length=256)]
ModelName = Annotated[str, Meta(min_length=1, max_length=256)]
Metadata = Annotated[dict[str, Annotated[str, Meta(max_length=512)]], Meta(max_length=16)]
LogitBias = Annotated[dict[str, Annotated[float, Meta(ge=-100, le=100)]], Meta(max_length=1024)]


class StreamOptions(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """Options of a stream."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class MediaUrl(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """An image by URL."""

    url: str
    detail: Literal["auto", "low", "high"] | None = None


class AudioData(Struct, forbid_unknown_fields=True):
    """Audio, base64."""

    data: str
    format: Literal["wav", "mp3"]


class ContentPart(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """One part of a message."""

    type: Literal["text", "refusal", "image_url", "input_audio"]
    text: str | None = None
    refusal: str | None = None
    image_url: MediaUrl | None = None
    input_audio: AudioData | None = None


class CalledFunction(Struct, forbid_unknown_fields=True):
    """The function a model called; arguments are JSON text."""

    name: Name
    arguments: str


class ToolCall(Struct, forbid_unknown_fields=True):
    """A call in an assistant's message."""

    id: str
    function: CalledFunction
    type: Literal["function"] = "function"


class Message(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """One message of the conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[ContentPart] | None = None
    name: Name | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None


class Function(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """A function a model may call; ``parameters`` is a JSON Schema."""

    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Struct, forbid_unknown_fields=True):
    """A tool: functions only."""

    type: Literal["function"]
    function: Function


class NamedFunction(Struct, forbid_unknown_fields=True):
    """A function by name."""

    name: Name


class NamedTool(Struct, forbid_unknown_fields=True):
    """The one tool to call."""

    type: Literal["function"]
    function: NamedFunction


class JsonSchema(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """The schema an answer must follow."""

    name: Name
    schema: dict[str, Any] | None = None
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """The form of the answer."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class ChatCompletionRequest(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """A chat request. ``top_k``, ``min_p`` and ``repetition_penalty`` are common extras."""

    model: ModelName
    messages: Annotated[list[Message], Meta(min_length=1, max_length=4096)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: NumTokens | None = None
    max_completion_tokens: NumTokens | None = None
    temperature: Temperature | None = None
    top_p: Share | None = None
    n: NumChoices | None = None
    stop: Stop | None = None
    seed: Seed | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: LogitBias | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    tools: Annotated[list[Tool], Meta(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    top_k: Annotated[int, Meta(ge=-1, le=100_000)] | None = None
    min_p: Share | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=10)] | None = None
    user: Name | None = None
    metadata: Metadata | None = None
    store: bool | None = None
    service_tier: Literal["auto", "default", "flex", "priority"] | None = None
    safety_identifier: Name | None = None
    prompt_cache_key: Name | None = None
    modalities: list[Literal["text"]] | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


chat_decoder = msgspec.json.Decoder(ChatCompletionRequest)
