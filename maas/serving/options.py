"""What an operator may say about a deployment, checked when it is written down."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from maas.core.errors import ConfigError

# The ranks vLLM allocates LoRA buffers for (vllm.config.lora.MaxLoRARanks).
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


class DeploymentOptions(BaseModel):
    """Engine options of a deployment; names are the engines' own."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    url: str | None = Field(default=None, pattern=r"^https?://[^/\s]+$")
    """Base URL of an external engine, without a path."""
    secret: str | None = None
    """Sealed secret of an external engine (maas.store.secrets)."""
    engine_model: str | None = None
    """The name an external engine knows the model by."""
    capabilities: dict[str, bool] | None = None
    """What an external engine can do, over the default (maas.engines.contract)."""
    base_model: str | None = None
    """Of a model that was tuned whole: the one whose card says how it runs. Not for operators."""
    weights: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    """Of a model that was tuned whole: the hash of its weights. Not for operators."""
    dtype: str | None = None
    """Torch dtype name; none takes the best this machine has."""
    quantization: str | None = None
    """A quantisation variant of the model card."""
    max_model_len: int | None = Field(default=None, gt=0)
    """Longest prompt and answer together, in tokens."""
    max_num_seqs: int | None = Field(default=None, gt=0)
    """Most sequences computed in one batch."""
    max_num_batched_tokens: int | None = Field(default=None, gt=0)
    """Most tokens computed in one step."""
    kv_cache_bytes: int | None = Field(default=None, gt=0)
    """Memory for the KV cache in bytes (CPU)."""
    gpu_memory_utilization: float = Field(default=0.9, gt=0, le=1)
    """Share of a GPU's memory the engine may take."""
    tensor_parallel_size: int = Field(default=1, gt=0)
    """GPUs one replica spans."""
    max_loras: int | None = Field(default=None, ge=0)
    """LoRA adapters in one batch; 0 turns adapters off; none takes what suits the machine."""
    max_lora_rank: int = 16
    """Largest rank of an adapter."""
    max_cpu_loras: int | None = Field(default=None, ge=0)
    """Adapters kept in memory for the next batch; none takes twice ``max_loras``."""
    target_ongoing_requests: float = Field(default=16, gt=0)
    """Requests (running and waiting) a replica should hold before another is started."""
    extra_engine_args: tuple[str, ...] = ()
    """Command-line arguments handed to the engine as they are."""


def parse_options(given: dict[str, Any]) -> DeploymentOptions:
    """Check the options of a deployment.

    Raises:
        ConfigError: One is unknown, of the wrong type or out of range; the message names it.
    """
    try:
        options = DeploymentOptions.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"deployment option {name!r}: {first['msg']}", param=name) from error
    if options.max_loras != 0 and options.max_lora_rank not in LORA_RANKS:
        ranks = ", ".join(map(str, LORA_RANKS))
        raise ConfigError(
            f"deployment option 'max_lora_rank': {options.max_lora_rank} is none of {ranks}",
            param="max_lora_rank",
        )
    return options
