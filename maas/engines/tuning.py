"""Chooses an engine's dtype, KV cache and step size from the machine and the model's card.

What an operator says wins; the rules for what is left open, in the order they are applied:

- **dtype** on processors: ``float32`` for models under half a billion parameters, whose greedy
  answers bfloat16 changes (docs/benchmarks.md: three in four of SmolLM2-135M's); for larger
  ones ``bfloat16`` where they multiply it (AVX-512 BF16, AMX), otherwise
  ``float32``: without the instructions every product is widened first, which costs more than
  reading twice the bytes. Weights that were quantised before are computed in ``bfloat16``:
  vLLM's AWQ and GPTQ know no ``float32``. On a GPU ``auto``.
- **max_num_seqs**: 16 for each processor, from 8 to 256 (a wider batch only waits), 4 for each with
  the onnx engine; on a GPU 256.
- **max_model_len**: the card's context, or the longest sequence whose KV cache fits a quarter
  of the machine's memory.
- **kv_cache_bytes** (processors only): ``max_num_seqs`` sequences of a typical 2,048 tokens, at
  least one of full length, at most a quarter of the machine's memory. It is touched at the start,
  so a generous guess would be memory that nobody else has.
- **max_num_batched_tokens** on processors: what they compute in about 4 s (2 FLOPs a weight), so
  that a long prompt delays nobody for longer and a hang can be told from work; a power of two
  from 256 to 4,096, never under ``max_num_seqs``, and for an embedding model, which reads its
  input in one step, never under ``max_model_len``.

- **max_loras**: 8 LoRA adapters in a batch where the engine loads them at run time and its
  implementation of the architecture takes them, fewer where their buffers (``max_loras`` of
  ``max_lora_rank``, and twice as many kept ready, ``max_cpu_loras``) would pass a 24th of the
  memory; none for quantised weights on processors. Base requests pay nothing for it
  (docs/adr/0010), so every such deployment is ready for its first adapter.

Only facts that stay the same while engines run are used (total, not free memory): a plan made
again later must be the same plan. Whether it fits now is ``maas.catalog.fit``'s question.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from maas.catalog.card import ModelCard
from maas.catalog.fit import adapter_bytes, kv_bytes_per_token
from maas.catalog.machine import Machine
from maas.engines.contract import EngineSpec

_BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
# One Zen 4 core; a GEMM of two of them reached 375 (bfloat16) and 96 (float32).
_GFLOPS_PER_CORE = {"bfloat16": 180.0, "float32": 45.0}
_ROUNDING_MATTERS_BELOW = 500_000_000
_STEP_S = 4.0
_TYPICAL_LEN = 2048
_KV_SHARE = 4
# Encoders keep none, but left unsaid vLLM would want 90 % of the machine's memory.
_MIN_KV_BYTES = 64 * 2**20
# What an engine quantises while loading; every other kind is in the weights' own config. On
# processors vLLM 0.32 fails at fp8, and its int8_per_channel_weight_only answers nonsense.
QUANTISED_BY_ENGINE = {"vllm": frozenset({"fp8"})}
GPU_ONLY = frozenset({"fp8"})
# Architectures whose implementation in an engine takes LoRA adapters while it serves.
_ONNX_ADAPTERS = frozenset({"LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM"})
TAKES_ADAPTERS = {
    # It runs the base with the adapter merged, as a second model in the same process.
    "onnx": _ONNX_ADAPTERS,
    "vllm": frozenset(
        {
            *("LlamaForCausalLM", "MistralForCausalLM", "AquilaForCausalLM", "Phi3ForCausalLM"),
            *("InternLMForCausalLM", "InternLM2ForCausalLM", "Qwen2ForCausalLM"),
            *("Qwen3ForCausalLM", "GemmaForCausalLM", "Gemma2ForCausalLM", "Gemma3ForCausalLM"),
            *("GlmForCausalLM", "Glm4ForCausalLM", "ChatGLMModel", "ChatGLMForCausalLM"),
        }
    ),
}
_MAX_LORAS = 8
# Its steps grow with the sequences in them sooner than vLLM's.
_SEQS_PER_CORE = {"onnx": 4}
_READY_PER_SLOT = 2
_ADAPTER_SHARE = 24


class EngineOptions(Protocol):
    """What an operator may have said (``maas.serving.options.DeploymentOptions``)."""

    @property
    def dtype(self) -> str | None: ...  # noqa: D102
    @property
    def quantization(self) -> str | None: ...  # noqa: D102
    @property
    def max_model_len(self) -> int | None: ...  # noqa: D102
    @property
    def max_num_seqs(self) -> int | None: ...  # noqa: D102
    @property
    def max_num_batched_tokens(self) -> int | None: ...  # noqa: D102
    @property
    def kv_cache_bytes(self) -> int | None: ...  # noqa: D102
    @property
    def gpu_memory_utilization(self) -> float: ...  # noqa: D102
    @property
    def tensor_parallel_size(self) -> int: ...  # noqa: D102
    @property
    def max_loras(self) -> int | None: ...  # noqa: D102
    @property
    def max_cpu_loras(self) -> int | None: ...  # noqa: D102
    @property
    def max_lora_rank(self) -> int: ...  # noqa: D102
    @property
    def extra_engine_args(self) -> tuple[str, ...]: ...  # noqa: D102


@dataclass(frozen=True)
class Tuning:
    """What was chosen.

    Attributes:
        spec: The engine's start; port, weights folder, processors and cache folder are for the
            replica to fill in.
    """

    spec: EngineSpec
    dtype: str
    max_model_len: int
    max_num_seqs: int


def choose_dtype(card: ModelCard, machine: Machine, *, is_quantised: bool = False) -> str:
    """Return the dtype this machine computes fastest without changing what a model says."""
    if machine.gpus:
        return "auto"
    if is_quantised:
        return "bfloat16"
    if card.parameters < _ROUNDING_MATTERS_BELOW:
        return "float32"
    return "bfloat16" if machine.cpu_flags & _BF16_FLAGS else "float32"


def share_cpus(cpu_ids: tuple[int, ...], *, index: int, num_replicas: int) -> tuple[int, ...]:
    """Return the processors of replica ``index`` of ``num_replicas`` on one machine.

    With more replicas than processors several share one.
    """
    if num_replicas >= len(cpu_ids):
        return (cpu_ids[index % len(cpu_ids)],)
    start, end = (len(cpu_ids) * i // num_replicas for i in (index, index + 1))
    return cpu_ids[start:end]


def step_tokens(card: ModelCard, machine: Machine, *, dtype: str, at_least: int) -> int:
    """Return how many tokens the processors should compute in one step."""
    flops_per_s = _GFLOPS_PER_CORE.get(dtype, 45.0) * 1e9 * machine.num_cores
    affordable = int(_STEP_S * flops_per_s / (2 * card.parameters))
    power = 1 << max(affordable, 1).bit_length() - 1
    return max(min(max(power, 256), 4096), at_least)


def choose_max_loras(
    card: ModelCard, machine: Machine, options: EngineOptions, *, engine: str, dtype: str
) -> int:
    """Return how many adapters a batch can mix; 0 where none are taken."""
    if options.max_loras is not None:
        return options.max_loras
    takes = card.architecture in TAKES_ADAPTERS.get(engine, frozenset())
    if not takes or card.task != "generate":
        return 0
    if machine.gpus:
        memory_bytes = min(gpu.memory_bytes for gpu in machine.gpus)
    elif card.has_own_source(options.quantization):
        return 0
    else:
        memory_bytes = machine.memory_total_bytes
    each = adapter_bytes(card, r=options.max_lora_rank, dtype=dtype)
    affordable = memory_bytes // _ADAPTER_SHARE // (each * (1 + _READY_PER_SLOT))
    return min(max(affordable, 1), _MAX_LORAS)


def tune(card: ModelCard, machine: Machine, options: EngineOptions, *, engine: str = "") -> Tuning:
    """Choose how to start an engine; the rules are in the module's docstring.

    Args:
        card: The model.
        machine: Where it will run.
        options: What the operator said; none of a field leaves it to the rules.
        engine: Which one; without it nothing is chosen that not all engines can do.
    """
    is_gpu = bool(machine.gpus)
    is_quantised = card.has_own_source(options.quantization)
    dtype = options.dtype or choose_dtype(card, machine, is_quantised=is_quantised)
    per_core = _SEQS_PER_CORE.get(engine, 16)
    max_num_seqs = options.max_num_seqs or (
        256 if is_gpu else min(max(per_core * machine.num_cores, 8), 256)
    )
    per_token = kv_bytes_per_token(card, dtype=card.dtype if dtype == "auto" else dtype)
    kv_limit = machine.memory_total_bytes // _KV_SHARE
    max_model_len = options.max_model_len or card.context
    if not options.max_model_len and not is_gpu and per_token:
        max_model_len = min(card.context, kv_limit // per_token // 16 * 16)
    wanted = per_token * max(max_model_len, max_num_seqs * min(max_model_len, _TYPICAL_LEN))
    at_least = max_model_len if card.task == "embed" else max_num_seqs
    stored_dtype = card.dtype if dtype == "auto" else dtype
    max_loras = choose_max_loras(card, machine, options, engine=engine, dtype=stored_dtype)
    max_cpu_loras = options.max_cpu_loras

    spec = EngineSpec(
        served_model_name=card.id,
        model_dir=Path(),
        port=0,
        task=card.task,
        device="cuda" if is_gpu else "cpu",
        dtype=dtype,
        # What comes quantised says how in its own config.
        quantization=None if is_quantised else options.quantization,
        max_model_len=max_model_len,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=options.max_num_batched_tokens
        or (None if is_gpu else step_tokens(card, machine, dtype=dtype, at_least=at_least)),
        kv_cache_bytes=options.kv_cache_bytes
        or (None if is_gpu else max(min(wanted, kv_limit), _MIN_KV_BYTES)),
        gpu_memory_utilization=options.gpu_memory_utilization,
        tensor_parallel_size=options.tensor_parallel_size,
        max_loras=max_loras,
        max_lora_rank=options.max_lora_rank,
        max_cpu_loras=_READY_PER_SLOT * max_loras if max_cpu_loras is None else max_cpu_loras,
        trust_remote_code=card.trust_remote_code,
        tool_call_parser=card.tool_call_parser,
        reasoning_parser=card.reasoning_parser,
        extra_engine_args=(*card.engine_args, *options.extra_engine_args),
    )
    return Tuning(spec=spec, dtype=dtype, max_model_len=max_model_len, max_num_seqs=max_num_seqs)
