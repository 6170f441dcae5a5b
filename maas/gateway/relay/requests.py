"""From bytes to a checked request: one parse, range checks, what it needs of an engine."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, cast

import msgspec

from maas.core.errors import CapabilityMissing, InvalidRequest, MalformedBody
from maas.engines.contract import EngineCapabilities
from maas.gateway.facts import ModelFacts
from maas.protocol.chat import (
    ChatCompletionRequest,
    ContentPart,
    Message,
    StreamOptions,
    chat_decoder,
)
from maas.protocol.completions import CompletionRequest, completion_decoder
from maas.protocol.embeddings import EmbeddingRequest, embedding_decoder
from maas.protocol.fields import FORBIDDEN_FIELDS
from maas.protocol.refusals import check_choices, invalid

MAX_SCHEMA_NODES = 10_000
_DEFAULT_ANSWER_TOKENS = 256

Body = ChatCompletionRequest | CompletionRequest | EmbeddingRequest


@dataclass
class EngineRequest:
    """A checked request on its way to an engine.

    Attributes:
        path: Path on the engine, which is the path of the API.
        body: What is encoded for the engine.
        needs: Engine capabilities it cannot do without.
        prompt_bytes: UTF-8 size of the prompt; an upper bound of its tokens.
        texts: Of a chat its parts; of a batch one prompt each.
        prompt_lengths: Tokens of each prompt that came as numbers.
        wants_usage: Whether the client asked for the usage chunk.
    """

    path: str
    body: Body
    needs: tuple[str, ...]
    texts: tuple[str, ...]
    prompt_lengths: tuple[int, ...]
    max_answer_tokens: int | None
    is_stream: bool
    wants_usage: bool

    @property
    def is_one_prompt(self) -> bool:
        """Whether the texts make one prompt (a chat) or are prompts of their own (a batch)."""
        return isinstance(self.body, ChatCompletionRequest)

    @property
    def num_prompts(self) -> int:
        """Prompts it has; each is answered for itself."""
        return 1 if self.is_one_prompt else len(self.texts) + len(self.prompt_lengths)

    @property
    def prompt_bytes(self) -> int:
        """UTF-8 size of the prompt's text; of the longest one where there are several."""
        sizes = [len(text) if text.isascii() else len(text.encode()) for text in self.texts]
        return sum(sizes) if self.is_one_prompt else max(sizes, default=0)

    @property
    def prefix(self) -> bytes:
        """Start of the prompt: what decides the preferred replica."""
        return "\0".join(self.texts)[:1024].encode()

    @property
    def num_tokens_estimate(self) -> int:
        """Tokens this request will hold, for load: four bytes a token."""
        answer = min(self.max_answer_tokens or _DEFAULT_ANSWER_TOKENS, 4096)
        num_input = sum(map(len, self.texts)) // 4 + sum(self.prompt_lengths)
        return num_input + answer * self.num_prompts


def _decode(decoder: msgspec.json.Decoder[Any], raw: bytes) -> Any:
    try:
        return decoder.decode(raw)
    except msgspec.ValidationError as error:
        raise invalid(error, FORBIDDEN_FIELDS) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise MalformedBody(f"the body is not valid JSON: {error}") from error
    except RecursionError as error:
        raise MalformedBody("the body is nested too deep") from error


def _children(node: Any) -> Iterable[Any]:
    if isinstance(node, dict):
        return cast("dict[str, Any]", node).values()
    return cast("list[Any]", node) if isinstance(node, list) else ()


def _check_schema(schema: dict[str, Any] | None, *, where: str, max_depth: int) -> None:
    """Bound a JSON Schema: engines compile it, and compiling may cost far more than reading."""
    level: list[Any] = [schema]
    num_nodes = 0
    for _ in range(max_depth):
        level = [child for node in level for child in _children(node)]
        num_nodes += len(level)
        if num_nodes > MAX_SCHEMA_NODES:
            raise InvalidRequest(f"{where} has over {MAX_SCHEMA_NODES} parts", param=where)
        if not level:
            return
    raise MalformedBody(f"{where} is nested over {max_depth} deep", param=where)


def _message_texts(message: Message, *, where: str, is_multimodal: bool) -> list[str]:
    content = message.content
    # All of it may become text of the prompt.
    others = [text for text in (message.refusal, message.reasoning_content) if text]
    for call in message.tool_calls or []:
        others += (call.function.name, call.function.arguments)
    if content is None:
        if message.role != "assistant" or not (message.tool_calls or message.refusal):
            raise InvalidRequest(f"{where}.content is required", param=f"{where}.content")
        return others
    if message.role == "tool" and not message.tool_call_id:
        raise InvalidRequest(f"{where}.tool_call_id is required", param=f"{where}.tool_call_id")
    if isinstance(content, str):
        return [content, *others] if others else [content]
    if not content:
        raise InvalidRequest(f"{where}.content is empty", param=f"{where}.content")
    parts = [
        _part_text(part, f"{where}.content[{i}]", is_multimodal) for i, part in enumerate(content)
    ]
    return parts + others


def _part_text(part: ContentPart, where: str, is_multimodal: bool) -> str:
    value = getattr(part, part.type)
    if value is None:
        raise InvalidRequest(f"{where}.{part.type} is required", param=f"{where}.{part.type}")
    if isinstance(value, str):
        return value
    if not is_multimodal:
        raise CapabilityMissing(f"{where}: this model reads text only", param=where)
    # The engine would fetch any other address on the caller's behalf.
    if part.image_url is not None and not part.image_url.url.startswith("data:"):
        raise InvalidRequest(f"{where}.image_url.url must be a data: URL", param=where)
    return ""


def _chat_needs(body: ChatCompletionRequest) -> tuple[str, ...]:
    needs = ["chat"]
    if body.tools and body.tool_choice != "none":
        needs.append("tools")
    if body.response_format is not None and body.response_format.type != "text":
        needs.append("structured_output")
    if body.logprobs:
        needs.append("logprobs")
    return (*needs, *_sampling_needs(body))


def _sampling_needs(body: ChatCompletionRequest | CompletionRequest) -> list[str]:
    wanted = {
        "n": (body.n or 1) > 1,
        "seed": body.seed is not None,
        "logit_bias": bool(body.logit_bias),
        "streaming": bool(body.stream),
    }
    return [name for name, is_wanted in wanted.items() if is_wanted]


def _check_chat(body: ChatCompletionRequest, max_depth: int) -> None:
    if body.top_logprobs and not body.logprobs:
        raise InvalidRequest("top_logprobs needs logprobs: true", param="top_logprobs")
    if body.tool_choice not in (None, "none") and not body.tools:
        raise InvalidRequest("tool_choice needs tools", param="tool_choice")
    if body.store:
        raise CapabilityMissing("store: true is not offered; leave it out", param="store")
    for i, tool in enumerate(body.tools or []):
        where = f"tools[{i}].function.parameters"
        _check_schema(tool.function.parameters, where=where, max_depth=max_depth)
    wanted = body.response_format
    if wanted is not None and wanted.type == "json_schema":
        where = "response_format.json_schema"
        if wanted.json_schema is None or wanted.json_schema.schema is None:
            raise InvalidRequest(f"{where}.schema is required", param=where)
        _check_schema(wanted.json_schema.schema, where=f"{where}.schema", max_depth=max_depth)


def _check_stream_options(body: ChatCompletionRequest | CompletionRequest) -> bool:
    """Force usage on; return whether the client asked for it."""
    wanted = body.stream_options
    if wanted is not None and not body.stream:
        raise InvalidRequest("stream_options needs stream: true", param="stream_options")
    if body.stream:
        body.stream_options = StreamOptions(include_usage=True)
    return bool(wanted and wanted.include_usage)


def parse_chat(raw: bytes, facts_of: Callable[[str], ModelFacts], max_depth: int) -> EngineRequest:
    """Check a chat request.

    Raises:
        InvalidRequest: Something in it is refused; the message names the field.
        ModelNotFound: There is no such model.
    """
    body: ChatCompletionRequest = _decode(chat_decoder, raw)
    facts = facts_of(body.model)
    _check_chat(body, max_depth)
    texts = [
        text
        for i, message in enumerate(body.messages)
        for text in _message_texts(
            message, where=f"messages[{i}]", is_multimodal=facts.is_multimodal
        )
    ]
    needs, wants_usage = _chat_needs(body), _check_stream_options(body)
    # What only the platform reads does not go on.
    body.metadata = body.store = body.service_tier = body.user = None
    if body.max_completion_tokens is not None:
        # Engines differ in which of the two they obey; one is reserved for.
        body.max_tokens = None
    body.safety_identifier = body.prompt_cache_key = body.modalities = body.verbosity = None
    return EngineRequest(
        path="/v1/chat/completions",
        body=body,
        needs=needs,
        texts=tuple(texts),
        prompt_lengths=(),
        max_answer_tokens=body.max_completion_tokens or body.max_tokens,
        is_stream=bool(body.stream),
        wants_usage=wants_usage,
    )


def _prompt(value: Any, *, where: str) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Return the prompts that came as texts, and the lengths of those that came as numbers."""
    if isinstance(value, str):
        return (value,), ()
    kinds: set[type[object]] = {type(item) for item in value}
    if len(kinds) > 1:
        raise InvalidRequest(f"{where} mixes texts and token ids", param=where)
    if kinds == {str}:
        return tuple(value), ()
    if kinds == {int}:
        return (), (len(value),)
    return (), tuple(len(item) for item in value)


def parse_completion(
    raw: bytes,
    facts_of: Callable[[str], ModelFacts],
    max_depth: int,  # noqa: ARG001 - the parsers share one shape
) -> EngineRequest:
    """Check a completion request.

    Raises:
        InvalidRequest: Something in it is refused; the message names the field.
        ModelNotFound: There is no such model.
    """
    body: CompletionRequest = _decode(completion_decoder, raw)
    facts_of(body.model)
    check_choices(body.prompt, body.n)
    texts, lengths = _prompt(body.prompt, where="prompt")
    if body.best_of not in (None, body.n or 1):
        raise CapabilityMissing("best_of is not offered; use n", param="best_of")
    needs = ["completions", *_sampling_needs(body)]
    if body.logprobs is not None:
        needs.append("logprobs")
    wants_usage = _check_stream_options(body)
    body.user = body.best_of = None
    return EngineRequest(
        path="/v1/completions",
        body=body,
        needs=tuple(needs),
        texts=texts,
        prompt_lengths=lengths,
        max_answer_tokens=body.max_tokens,
        is_stream=bool(body.stream),
        wants_usage=wants_usage,
    )


def parse_embedding(
    raw: bytes,
    facts_of: Callable[[str], ModelFacts],
    max_depth: int,  # noqa: ARG001 - the parsers share one shape
) -> EngineRequest:
    """Check an embedding request.

    Raises:
        InvalidRequest: Something in it is refused; the message names the field.
        ModelNotFound: There is no such model.
    """
    body: EmbeddingRequest = _decode(embedding_decoder, raw)
    facts_of(body.model)
    texts, lengths = _prompt(body.input, where="input")
    body.user = None
    return EngineRequest(
        path="/v1/embeddings",
        body=body,
        needs=("embeddings",),
        texts=texts,
        prompt_lengths=lengths,
        max_answer_tokens=0,
        is_stream=False,
        wants_usage=False,
    )


def encode_for(
    request: EngineRequest, *, engine_model: str, extra: bytes, capabilities: EngineCapabilities
) -> bytes:
    """Return the body for one engine.

    Args:
        request: What was checked.
        engine_model: The engine's own name of the model.
        extra: JSON members only the platform may set (``,"cache_salt":"..."``).
        capabilities: What the engine knows; what it does not is left out or said its way.
    """
    body = request.body
    body.model = engine_model
    if not capabilities.stream_usage and not isinstance(body, EmbeddingRequest):
        body.stream_options = None
    says_max_tokens = not capabilities.max_completion_tokens
    if says_max_tokens and isinstance(body, ChatCompletionRequest) and body.max_completion_tokens:
        body.max_tokens, body.max_completion_tokens = body.max_completion_tokens, None
    encoded = msgspec.json.encode(body)
    return encoded[:-1] + extra + b"}" if extra else encoded
