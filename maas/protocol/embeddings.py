"""``POST /v1/embeddings``: the request, as OpenAI defines it, and nothing beyond."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from maas.protocol.chat import ModelName, Name
from maas.protocol.completions import Prompt


class EmbeddingRequest(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """An embedding request."""

    model: ModelName
    input: Prompt
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Meta(ge=1, le=65_536)] | None = None
    user: Name | None = None


embedding_decoder = msgspec.json.Decoder(EmbeddingRequest)
