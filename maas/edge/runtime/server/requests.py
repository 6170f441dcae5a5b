"""From a body to what the engine is asked."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
from msgspec import Struct

from maas.core.errors import CapabilityMissing, InvalidRequest, MalformedBody, PromptTooLong
from maas.edge.runtime.engine.contract import ModelInfo, SamplingParams
from maas.edge.runtime.server.grammars import response_grammar
from maas.edge.runtime.server.templates import ChatTemplate
from maas.edge.runtime.server.tools import ToolPlan, plan_tools
from maas.protocol.chat import ChatCompletionRequest, Message, ModelName
from maas.protocol.completions import CompletionRequest
from maas.protocol.embeddings import EmbeddingRequest
from maas.protocol.refusals import check_choices, invalid

_DEFAULT_COMPLETION_TOKENS = 16
Encode = Callable[[str, bool], list[int]]


class ChatBody(ChatCompletionRequest, forbid_unknown_fields=True, omit_defaults=True):
    """A chat request; the platform's gateway adds the salt."""

    cache_salt: str | None = None


class CompletionBody(CompletionRequest, forbid_unknown_fields=True, omit_defaults=True):
    """A completion request; the platform's gateway adds the salt, its receipts ask for ids.

    Attributes:
        return_token_ids: The answer has its tokens' ids, the end token's among them.
        return_tokens_as_token_ids: Log probabilities are by ``token_id:N``: texts of tokens are
            not one to one.
    """

    cache_salt: str | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None


class TokenizeBody(Struct, forbid_unknown_fields=True):
    """``/tokenize``: which tokens a chat becomes."""

    model: ModelName
    messages: list[Message]
    add_generation_prompt: bool = True


chat_body = msgspec.json.Decoder(ChatBody)
completion_body = msgspec.json.Decoder(CompletionBody)
tokenize_body = msgspec.json.Decoder(TokenizeBody)
embedding_body = msgspec.json.Decoder(EmbeddingRequest)


@dataclass(frozen=True)
class Asked:
    """What a request asks of the engine: some prompts, each answered ``n`` times.

    Attributes:
        prompts: Their tokens.
        params: Of each answer, in the order of the choices.
        stops: Texts that end an answer.
        wants_usage: Whether a stream ends with the usage.
        wants_ids: Whether tokens are told by their ids.
    """

    model: str
    prompts: tuple[tuple[int, ...], ...]
    params: tuple[SamplingParams, ...]
    stops: tuple[str, ...]
    cache_salt: str
    is_stream: bool
    wants_usage: bool
    wants_ids: bool = False
    tools: ToolPlan = field(default_factory=ToolPlan)

    @property
    def grammar(self) -> str | None:
        """What each answer must be."""
        return self.params[0].grammar

    @property
    def choices(self) -> list[tuple[tuple[int, ...], SamplingParams]]:
        """Prompt and parameters of each choice, by its index."""
        return [(prompt, params) for prompt in self.prompts for params in self.params]


def decode(decoder: msgspec.json.Decoder[Any], raw: bytes) -> Any:
    """Decode a body.

    Raises:
        MalformedBody: It is not JSON.
        InvalidRequest: A field is wrong or unknown; the message names it.
    """
    try:
        return decoder.decode(raw)
    except msgspec.ValidationError as error:
        raise invalid(error) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedBody(f"the body is not valid JSON: {error}") from error


def asked_chat(
    body: ChatBody, template: ChatTemplate, encode: Encode, info: ModelInfo, reads_tools: bool
) -> Asked:
    """Return what a chat asks for.

    Args:
        body: The request.
        template: Of the model's chats.
        encode: Turns text into tokens.
        info: What the model is.
        reads_tools: Whether calls that it writes of itself are read.

    Raises:
        CapabilityMissing: It asks for what is not offered, calls that nobody reads among it.
        InvalidRequest: Something in it is wrong.
        PromptTooLong: There is no room for the prompt and the answer.
    """
    if body.store:
        raise CapabilityMissing("store: true is not offered; leave it out", param="store")
    plan = plan_tools(body)
    if plan.mode == "auto" and not reads_tools:
        raise CapabilityMissing(
            "tools: nobody here reads the calls that this model writes of itself; "
            "tool_choice required, or a function's name, makes it call one",
            param="tools",
        )
    tools = [msgspec.to_builtins(t) for t in body.tools or []] if plan.mode == "auto" else None
    prompt = encode(template.render([_message(m) for m in body.messages], tools or None), False)
    check_tokens(prompt, info, "messages")
    limit = body.max_completion_tokens or body.max_tokens
    num_logprobs = (body.top_logprobs or 0) if body.logprobs else None
    params = _params(body, info, num_logprobs, _room(prompt, limit, info))
    params = replace(params, grammar=plan.grammar or response_grammar(body.response_format))
    return _asked(body, (tuple(prompt),), params, plan)


def asked_completion(body: CompletionBody, encode: Encode, info: ModelInfo) -> Asked:
    """Return what a completion asks for.

    Raises:
        InvalidRequest: Something in it is wrong.
        PromptTooLong: There is no room for a prompt and its answer.
    """
    if (body.best_of or 1) > 1:
        raise CapabilityMissing("best_of is not offered; use n", param="best_of")
    check_choices(body.prompt, body.n)
    prompts = tuple(tuple(prompt) for prompt in token_lists(body.prompt, encode))
    limit = body.max_tokens or _DEFAULT_COMPLETION_TOKENS
    for prompt in prompts:
        check_tokens(prompt, info, "prompt")
        _room(prompt, limit, info)
    return _asked(body, prompts, _params(body, info, body.logprobs, limit), ToolPlan())


def token_lists(prompt: Any, encode: Encode) -> list[list[int]]:
    """Return the prompts of a completion or embedding request as tokens."""
    if isinstance(prompt, str):
        return [encode(prompt, True)]
    if all(isinstance(item, int) for item in prompt):
        return [list(prompt)]
    return [encode(item, True) if isinstance(item, str) else _tokens(item) for item in prompt]


def check_tokens(token_ids: Collection[int], info: ModelInfo, param: str) -> None:
    """Refuse tokens that the model does not have.

    Raises:
        InvalidRequest: One is none of its vocabulary.
    """
    if not info.has_tokens(token_ids):
        raise InvalidRequest(
            f"{param}: this model's token ids are 0 to {info.vocab_size - 1}", param=param
        )


def _tokens(item: Any) -> list[int]:
    if isinstance(item, int):
        raise InvalidRequest("texts and tokens are mixed", param="prompt")
    return list(item)


def _asked(
    body: ChatBody | CompletionBody,
    prompts: tuple[tuple[int, ...], ...],
    params: SamplingParams,
    plan: ToolPlan,
) -> Asked:
    stops = body.stop or ()
    return Asked(
        model=body.model,
        prompts=prompts,
        params=tuple(_nth(params, index) for index in range(body.n or 1)),
        stops=(stops,) if isinstance(stops, str) else tuple(stops),
        cache_salt=body.cache_salt or "",
        is_stream=bool(body.stream),
        wants_usage=bool(body.stream_options and body.stream_options.include_usage),
        wants_ids=isinstance(body, CompletionBody) and bool(body.return_token_ids),
        tools=plan,
    )


def _nth(params: SamplingParams, index: int) -> SamplingParams:
    """Answers to one prompt differ also with a seed."""
    if not index or params.seed is None:
        return params
    return replace(params, seed=params.seed + index)


def _params(
    body: ChatBody | CompletionBody, info: ModelInfo, num_logprobs: int | None, max_tokens: int
) -> SamplingParams:
    def given(value: float | None, default: float) -> float:
        return default if value is None else value

    return SamplingParams(
        max_tokens=max_tokens,
        temperature=given(body.temperature, 1.0),
        top_p=given(body.top_p, 1.0),
        top_k=max(body.top_k or 0, 0),
        min_p=given(body.min_p, 0.0),
        # numpy's generators take no negative numbers.
        seed=None if body.seed is None else body.seed % 2**63,
        repetition_penalty=given(body.repetition_penalty, 1.0),
        presence_penalty=given(body.presence_penalty, 0.0),
        frequency_penalty=given(body.frequency_penalty, 0.0),
        logit_bias=_bias(body.logit_bias, info),
        num_logprobs=num_logprobs,
    )


def _bias(bias: dict[str, float] | None, info: ModelInfo) -> dict[int, float]:
    try:
        found = {int(token): value for token, value in (bias or {}).items()}
    except ValueError as error:
        raise InvalidRequest("logit_bias: keys are token ids", param="logit_bias") from error
    check_tokens(found, info, "logit_bias")
    return found


def _room(prompt: Sequence[int], limit: int | None, info: ModelInfo) -> int:
    """Return the tokens an answer may have."""
    room = info.max_model_len - len(prompt)
    if room < 1 or (limit or 0) > room:
        raise PromptTooLong(
            f"the model has room for {info.max_model_len} tokens; the prompt has {len(prompt)}"
            + (f" and {limit} are asked for" if limit else ""),
            param="messages",
        )
    return limit or room


def tokens_of_chat(
    messages: Sequence[Message], template: ChatTemplate, encode: Encode
) -> list[int]:
    """Return the tokens a chat becomes."""
    return encode(template.render([_message(m) for m in messages], None), False)


def _message(message: Message) -> dict[str, Any]:
    """Return a message as templates read it: text content, calls with their arguments parsed."""
    plain: dict[str, Any] = msgspec.to_builtins(message)
    content = message.content
    if isinstance(content, list):
        if any(part.type not in {"text", "refusal"} for part in content):
            raise CapabilityMissing("this model reads text only", param="messages")
        plain["content"] = "".join(part.text or part.refusal or "" for part in content)
    for call in plain.get("tool_calls") or ():
        try:
            call["function"]["arguments"] = msgspec.json.decode(call["function"]["arguments"])
        except msgspec.DecodeError:
            # Some templates take text as well.
            continue
    return plain
