"""``POST /v1/completions``: the request, as OpenAI defines it, and nothing beyond."""

from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from maas.protocol.chat import (
    LogitBias,
    ModelName,
    Name,
    NumChoices,
    NumTokens,
    Penalty,
    Seed,
    Share,
    Stop,
    StreamOptions,
    Temperature,
)

TokenId = Annotated[int, Meta(ge=0, lt=2**31)]
Prompt = (
    str
    | Annotated[
        list[str | TokenId | Annotated[list[TokenId], Meta(min_length=1)]], Meta(min_length=1)
    ]
)


class CompletionRequest(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """A completion request."""

    model: ModelName
    prompt: Prompt
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: NumTokens | None = None
    temperature: Temperature | None = None
    top_p: Share | None = None
    n: NumChoices | None = None
    stop: Stop | None = None
    seed: Seed | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: LogitBias | None = None
    logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    best_of: NumChoices | None = None
    top_k: Annotated[int, Meta(ge=-1, le=100_000)] | None = None
    min_p: Share | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=10)] | None = None
    user: Name | None = None


completion_decoder = msgspec.json.Decoder(CompletionRequest)
