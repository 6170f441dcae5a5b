"""Whether a model fits a machine, in bytes, before anything is started.

Weights are ``parameters x bits / 8``. The KV cache holds one key and one value vector per
layer, KV head and token: ``2 x layers x kv_heads x head_dim x bytes`` (Kwon et al. 2023,
PagedAttention, section 3; Ainslie et al. 2023 for grouped heads). Recurrent models keep a
constant state per sequence instead.
"""

import dataclasses
from dataclasses import dataclass

from maas.catalog.card import ModelCard
from maas.catalog.machine import Machine

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
DEFAULT_MAX_NUM_SEQS = 32
DEFAULT_BITS = {"int8": 8.5, "int4": 4.5, "awq": 4.5, "gptq": 4.5, "fp8": 8.0}
# An engine's own code and buffers: measured for vLLM on CPU with a 135M model (docs/benchmarks.md).
CPU_OVERHEAD_BYTES = 1_600 * 2**20
GPU_OVERHEAD_BYTES = 1_500 * 2**20
_GIB = 2**30


@dataclass(frozen=True)
class FitReport:
    """The estimate; all sizes in bytes, per replica over all its GPUs.

    Attributes:
        kv_bytes_per_token: Of one sequence, one token.
        kv_bytes: At ``max_model_len`` x ``max_num_seqs``: every sequence as long as can be.
        advice: What to change when it does not fit, most useful first.
    """

    model_id: str
    dtype: str
    quantization: str | None
    max_model_len: int
    max_num_seqs: int
    weights_bytes: int
    kv_bytes_per_token: int
    kv_bytes: int
    overhead_bytes: int
    total_bytes: int
    available_bytes: int
    fits: bool
    reason: str
    advice: tuple[str, ...] = ()


def weights_bytes(card: ModelCard, *, dtype: str, quantization: str | None) -> int:
    """Return the size of the weights in bytes."""
    if quantization is None:
        return card.parameters * DTYPE_BYTES[dtype]
    declared = {variant.name: variant.bits_per_weight for variant in card.variants}
    bits = declared.get(quantization) or DEFAULT_BITS.get(quantization, 8.5)
    return int(card.parameters * bits / 8)


def kv_bytes_per_token(card: ModelCard, *, dtype: str) -> int:
    """Return the KV cache of one token in bytes; 0 for models without one."""
    shape = card.shape
    if card.task == "embed":
        return 0
    return 2 * shape.num_layers * shape.num_kv_heads * shape.head_dim * DTYPE_BYTES[dtype]


def _gib(size: int) -> str:
    return f"{size / _GIB:.2f} GiB"


def _available_bytes(machine: Machine, *, num_gpus: int, gpu_memory_utilization: float) -> int:
    if not machine.gpus:
        return machine.memory_available_bytes
    smallest = min(gpu.memory_bytes for gpu in machine.gpus)
    return int(smallest * gpu_memory_utilization) * min(num_gpus, len(machine.gpus))


def _advice(card: ModelCard, report: FitReport, machine: Machine) -> tuple[str, ...]:
    """Say what would make it fit, with numbers, most useful first."""
    advice: list[str] = []
    rest = report.available_bytes - report.weights_bytes - report.overhead_bytes
    if rest > 0 and report.kv_bytes_per_token:
        tokens = rest // report.kv_bytes_per_token
        num_seqs = tokens // report.max_model_len
        if num_seqs:
            advice.append(f"set max_num_seqs to {num_seqs}")
        length = tokens // report.max_num_seqs // 16 * 16
        if length >= 256:
            advice.append(f"set max_model_len to {length}")
    for name in [variant.name for variant in card.variants] or ["int8", "int4"]:
        size = weights_bytes(card, dtype=report.dtype, quantization=name)
        if size < report.weights_bytes:
            advice.append(f"take quantization {name}: weights of {_gib(size)}")
    if machine.gpus:
        per_gpu = report.available_bytes // max(len(machine.gpus), 1)
        advice.append(f"set tensor_parallel_size to {-(-report.total_bytes // max(per_gpu, 1))}")
    advice.append(f"take a machine with {_gib(report.total_bytes)} free, or a smaller model")
    return tuple(advice)


def estimate_fit(  # noqa: PLR0913 - one name for each number an operator can turn
    card: ModelCard,
    machine: Machine,
    *,
    dtype: str | None = None,
    quantization: str | None = None,
    max_model_len: int | None = None,
    max_num_seqs: int | None = None,
    tensor_parallel_size: int = 1,
    gpu_memory_utilization: float = 0.9,
    kv_cache_bytes: int | None = None,
) -> FitReport:
    """Say whether a model fits a machine, and what to change if not.

    Args:
        card: The model.
        machine: Where it should run; its GPUs are used when it has any.
        dtype: Type of weights and cache; the card's by default.
        quantization: A variant of the card, or a usual name (``int8``).
        max_model_len: Tokens of one sequence; the card's context by default.
        max_num_seqs: Sequences at once.
        tensor_parallel_size: GPUs one replica spans.
        gpu_memory_utilization: Share of a GPU the engine may take.
        kv_cache_bytes: What the engine will set aside for the cache; by default enough for
            every sequence at full length.
    """
    dtype = card.dtype if dtype in (None, "auto") else dtype
    length = min(max_model_len or card.context, card.context)
    num_seqs = max_num_seqs or DEFAULT_MAX_NUM_SEQS
    weights = weights_bytes(card, dtype=dtype, quantization=quantization)
    per_token = kv_bytes_per_token(card, dtype=dtype)
    kv = per_token * length * num_seqs + card.shape.state_bytes_per_sequence * num_seqs
    kv = kv if kv_cache_bytes is None else kv_cache_bytes
    overhead = GPU_OVERHEAD_BYTES * tensor_parallel_size if machine.gpus else CPU_OVERHEAD_BYTES
    available = _available_bytes(
        machine, num_gpus=tensor_parallel_size, gpu_memory_utilization=gpu_memory_utilization
    )
    total = weights + kv + overhead
    divides = card.shape.num_attention_heads % tensor_parallel_size == 0
    fits = total <= available and divides
    report = FitReport(
        model_id=card.id,
        dtype=dtype,
        quantization=quantization,
        max_model_len=length,
        max_num_seqs=num_seqs,
        weights_bytes=weights,
        kv_bytes_per_token=per_token,
        kv_bytes=kv,
        overhead_bytes=overhead,
        total_bytes=total,
        available_bytes=available,
        fits=fits,
        reason=(
            f"needs {_gib(total)} (weights {_gib(weights)}, KV cache {_gib(kv)} for {num_seqs} x "
            f"{length} tokens, engine {_gib(overhead)}) of {_gib(available)}"
        ),
    )
    if fits:
        return report
    if not divides:
        heads = card.shape.num_attention_heads
        reason = f"{heads} attention heads do not divide by tensor_parallel_size"
        advice = tuple(f"set tensor_parallel_size to {n}" for n in (2, 4, 8) if heads % n == 0)
        return _replace(report, reason=f"{reason} {tensor_parallel_size}", advice=advice)
    return _replace(report, reason=report.reason, advice=_advice(card, report, machine))


def _replace(report: FitReport, *, reason: str, advice: tuple[str, ...]) -> FitReport:
    return dataclasses.replace(report, reason=reason, advice=advice)
