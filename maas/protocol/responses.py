"""Wire objects of ``POST /v1/responses``: what is asked, and what is answered.

Names and shapes are those of OpenAI's Responses API as its Python SDK parses them
(``openai.types.responses``). Requests refuse unknown fields; answers write every field,
``null`` included, as OpenAI does. The streamed events are in ``response_events``.
"""

from typing import Annotated, Any, Literal

import msgspec

JsonObject = dict[str, Any]
ItemStatus = Literal["in_progress", "completed", "incomplete"]
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh"]

Probability = Annotated[float, msgspec.Meta(ge=0.0, le=1.0)]
Temperature = Annotated[float, msgspec.Meta(ge=0.0, le=2.0)]
PositiveInt = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
NumTopLogprobs = Annotated[int, msgspec.Meta(ge=0, le=20)]
FunctionName = Annotated[str, msgspec.Meta(pattern=r"^[a-zA-Z0-9_-]{1,128}$")]
ShortText = Annotated[str, msgspec.Meta(max_length=512)]
Metadata = Annotated[
    dict[Annotated[str, msgspec.Meta(max_length=64)], ShortText], msgspec.Meta(max_length=16)
]


class RequestPart(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Base of what a caller sends: a field the API does not have is refused."""


class AnswerPart(msgspec.Struct, kw_only=True):
    """Base of what is answered."""


# --- the request: input items ---------------------------------------------------------


class InputText(RequestPart, tag="input_text"):
    """Text somebody wrote to the model."""

    text: str


class PastOutputText(RequestPart, tag="output_text"):
    """Text the model wrote, handed back. Its annotations and logprobs are not replayed."""

    text: str
    annotations: list[JsonObject] | None = None
    logprobs: list[JsonObject] | None = None


class PastRefusal(RequestPart, tag="refusal"):
    """A refusal the model wrote, handed back."""

    refusal: str


class ReasoningText(RequestPart, tag="reasoning_text"):
    """Reasoning the model wrote."""

    text: str


class SummaryText(RequestPart, tag="summary_text"):
    """A summary of reasoning."""

    text: str


class MessageItem(RequestPart):
    """A message of any role; ``type`` may be left out, as the API allows."""

    role: Literal["user", "assistant", "system", "developer"]
    content: str | list[InputText | PastOutputText | PastRefusal]
    type: Literal["message"] = "message"
    id: str | None = None
    status: ItemStatus | None = None
    phase: Literal["commentary", "final_answer"] | None = None


class FunctionCallItem(RequestPart):
    """A function call the model made, handed back."""

    type: Literal["function_call"]
    call_id: Annotated[str, msgspec.Meta(min_length=1, max_length=512)]
    name: FunctionName
    arguments: str
    id: str | None = None
    status: ItemStatus | None = None


class FunctionCallOutputItem(RequestPart):
    """What a function returned."""

    type: Literal["function_call_output"]
    call_id: Annotated[str, msgspec.Meta(min_length=1, max_length=512)]
    output: str | list[InputText]
    id: str | None = None
    name: str | None = None
    status: ItemStatus | None = None


class ReasoningItem(RequestPart):
    """Reasoning handed back; accepted so that a whole output can be, not replayed."""

    type: Literal["reasoning"]
    id: str | None = None
    summary: list[SummaryText] = []
    content: list[ReasoningText] | None = None
    encrypted_content: None = None
    status: ItemStatus | None = None


InputItem = MessageItem | FunctionCallItem | FunctionCallOutputItem | ReasoningItem


# --- the request: settings ------------------------------------------------------------


class FunctionTool(RequestPart):
    """A function the model may call."""

    name: FunctionName
    type: Literal["function"] = "function"
    description: str | None = None
    parameters: JsonObject | None = None
    strict: bool | None = None


class NamedToolChoice(RequestPart, tag="function"):
    """The one function the model must call."""

    name: FunctionName


class AllowedTool(RequestPart):
    """One entry of ``allowed_tools``."""

    name: FunctionName
    type: Literal["function"] = "function"


class AllowedToolChoice(RequestPart, tag="allowed_tools"):
    """The functions of ``tools`` that this turn may use."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[AllowedTool], msgspec.Meta(min_length=1)]


ToolChoice = Literal["none", "auto", "required"] | NamedToolChoice | AllowedToolChoice


class TextFormat(RequestPart, tag="text"):
    """Free text."""


class JsonObjectFormat(RequestPart, tag="json_object"):
    """Any JSON object."""


class JsonSchemaFormat(RequestPart, tag="json_schema"):
    """JSON that fits a schema."""

    name: Annotated[str, msgspec.Meta(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]
    schema: JsonObject
    description: str | None = None
    strict: bool | None = None


class TextConfig(RequestPart):
    """How the text of the answer is shaped."""

    format: TextFormat | JsonObjectFormat | JsonSchemaFormat = msgspec.field(
        default_factory=TextFormat
    )
    verbosity: Literal["low", "medium", "high"] | None = None


class ReasoningConfig(RequestPart):
    """How hard a reasoning model thinks. Reasoning is returned whole, never summarised."""

    effort: Effort | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None


class StreamOptions(RequestPart):
    """Settings of the stream."""

    include_obfuscation: bool | None = None


class ResponsesRequest(RequestPart):
    """The body of ``POST /v1/responses``.

    ``input``'s items and ``tools`` stay raw here: they are decoded one at a time, so that
    a refusal can name the item and its type (``maas.gateway.responses.request``).
    """

    model: Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
    input: str | list[msgspec.Raw]
    background: bool | None = None
    conversation: str | JsonObject | None = None
    include: list[str] | None = None
    instructions: str | None = None
    max_output_tokens: PositiveInt | None = None
    max_tool_calls: PositiveInt | None = None
    metadata: Metadata | None = None
    parallel_tool_calls: bool | None = None
    previous_response_id: str | None = None
    prompt: JsonObject | None = None
    prompt_cache_key: ShortText | None = None
    reasoning: ReasoningConfig | None = None
    safety_identifier: ShortText | None = None
    service_tier: str | None = None
    store: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Temperature | None = None
    text: TextConfig | None = None
    tool_choice: ToolChoice | None = None
    tools: Annotated[list[msgspec.Raw], msgspec.Meta(max_length=128)] | None = None
    top_logprobs: NumTopLogprobs | None = None
    top_p: Probability | None = None
    truncation: Literal["auto", "disabled"] | None = None
    user: ShortText | None = None


# --- the answer -----------------------------------------------------------------------


class TopLogprob(AnswerPart):
    """One of the likeliest tokens at a position."""

    token: str
    logprob: float
    bytes: list[int]


class Logprob(TopLogprob):
    """The chosen token at a position and its likeliest rivals."""

    top_logprobs: list[TopLogprob] = []


class OutputText(AnswerPart, tag="output_text"):
    """A part of a message: text."""

    text: str = ""
    annotations: list[JsonObject] = []
    logprobs: list[Logprob] = []


class OutputRefusal(AnswerPart, tag="refusal"):
    """A part of a message: why the model will not answer."""

    refusal: str = ""


class OutputReasoningText(AnswerPart, tag="reasoning_text"):
    """A part of a reasoning item."""

    text: str = ""


class OutputMessage(AnswerPart, tag="message"):
    """A message the model wrote."""

    id: str
    status: ItemStatus = "in_progress"
    role: Literal["assistant"] = "assistant"
    content: list[OutputText | OutputRefusal] = []


class OutputFunctionCall(AnswerPart, tag="function_call"):
    """A function the model wants called."""

    id: str
    call_id: str
    name: str
    arguments: str = ""
    status: ItemStatus = "in_progress"


class OutputReasoning(AnswerPart, tag="reasoning"):
    """What the model thought before it answered."""

    id: str
    summary: list[JsonObject] = []
    content: list[OutputReasoningText] = []
    encrypted_content: str | None = None
    status: ItemStatus = "in_progress"


OutputItem = OutputMessage | OutputFunctionCall | OutputReasoning


class InputTokensDetails(AnswerPart):
    """Of the prompt's tokens, those that came from a cache."""

    cached_tokens: int = 0
    cache_write_tokens: int = 0


class OutputTokensDetails(AnswerPart):
    """Of the generated tokens, those that were reasoning."""

    reasoning_tokens: int = 0


class Usage(AnswerPart):
    """Tokens read and written."""

    input_tokens: int
    output_tokens: int
    total_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens_details: OutputTokensDetails


class IncompleteDetails(AnswerPart):
    """Why an answer stopped early."""

    reason: Literal["max_output_tokens", "content_filter"]


class ResponseError(AnswerPart):
    """Why an answer failed."""

    code: str
    message: str


class Response(AnswerPart):
    """The answer, and an echo of the settings it was made with."""

    id: str
    created_at: int
    model: str
    object: Literal["response"] = "response"
    status: Literal["in_progress", "completed", "incomplete", "failed"] = "in_progress"
    background: bool = False
    completed_at: int | None = None
    error: ResponseError | None = None
    incomplete_details: IncompleteDetails | None = None
    instructions: str | None = None
    max_output_tokens: int | None = None
    max_tool_calls: int | None = None
    metadata: dict[str, str] = {}
    output: list[OutputItem] = []
    parallel_tool_calls: bool = True
    previous_response_id: str | None = None
    prompt_cache_key: str | None = None
    reasoning: ReasoningConfig = msgspec.field(default_factory=ReasoningConfig)
    safety_identifier: str | None = None
    service_tier: Literal["default"] = "default"
    store: bool = False
    temperature: float | None = None
    text: TextConfig = msgspec.field(default_factory=TextConfig)
    tool_choice: ToolChoice = "auto"
    tools: list[FunctionTool] = []
    top_logprobs: int = 0
    top_p: float | None = None
    truncation: Literal["disabled"] = "disabled"
    usage: Usage | None = None
    user: str | None = None
