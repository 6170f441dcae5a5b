"""Whether a model fits a machine, in bytes, before anything is started.

Weights are ``parameters x bits / 8``. The KV cache holds one key and one value vector per
layer, KV head and token: ``2 x layers x kv_heads x head_dim x bytes`` (Kwon et al. 2023,
PagedAttention, section 3; Ainslie et al. 2023 for grouped heads). Recurrent models keep a
constant state per sequence instead.
"""

from dataclasses import dataclass, replace

from maas.catalog.card import ModelCard
from maas.catalog.machine import Machine
from maas.core.errors import ConfigError

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
DEFAULT_MAX_NUM_SEQS = 32
DEFAULT_BITS = {"int8": 8.5, "int4": 4.5, "awq": 4.5, "gptq": 4.5, "fp8": 8.0}
# An engine's own code and buffers: measured for vLLM on CPU with a 135M model (docs/benchmarks.md).
CPU_OVERHEAD_BYTES = 1_600 * 2**20
GPU_OVERHEAD_BYTES = 1_500 * 2**20
MIN_USEFUL_LENGTH = 256
_GIB = 2**30


@dataclass(frozen=True)
class FitReport:
    """The estimate; all sizes in bytes, per replica over all its GPUs.

    Attributes:
        kv_bytes_per_token: Of one sequence, one token.
        kv_bytes: What the cache takes at least: ``num_full_seqs`` of ``max_model_len`` tokens,
            or the size that was given.
        full_kv_bytes: At ``max_model_len`` x ``max_num_seqs``: every sequence as long as can be.
        advice: What to change when it does not fit, most useful first.
        num_gpus: GPUs (or, without any, machines) the sizes are spread over.
        num_full_seqs: Sequences of full length that must have room at once.
        is_kv_set: The cache's size was given, and does not follow from lengths.
        adapters_bytes: Room for LoRA adapters.
    """

    model_id: str
    dtype: str
    quantization: str | None
    max_model_len: int
    max_num_seqs: int
    weights_bytes: int
    kv_bytes_per_token: int
    kv_bytes: int
    full_kv_bytes: int
    overhead_bytes: int
    total_bytes: int
    available_bytes: int
    fits: bool
    reason: str
    advice: tuple[str, ...] = ()
    num_gpus: int = 1
    num_full_seqs: int = 1
    is_kv_set: bool = False
    adapters_bytes: int = 0


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


def adapter_bytes(card: ModelCard, *, r: int, dtype: str) -> int:
    """Return the memory of one LoRA adapter of all linear layers of the blocks.

    A layer of ``in x out`` has ``r x (in + out)`` numbers more (Hu et al. 2021, section 4.1). The
    width of the feed-forward layers is not on the card; it follows from the parameters.
    """
    shape = card.shape
    hidden = shape.hidden_size
    queries, keys = (
        heads * shape.head_dim for heads in (shape.num_attention_heads, shape.num_kv_heads)
    )
    attention = 2 * hidden * (queries + keys)
    in_blocks = max(card.parameters - shape.vocab_size * hidden, 0) // shape.num_layers
    intermediate = max(in_blocks - attention, 0) // (3 * hidden)
    widths = 2 * (hidden + queries) + 2 * (hidden + keys) + 3 * (hidden + intermediate)
    return r * widths * shape.num_layers * DTYPE_BYTES.get(dtype, 2)


def kv_copies(card: ModelCard, *, tensor_parallel_size: int) -> float:
    """Return how often KV heads are stored: ranks beyond the number of heads hold copies."""
    return max(1.0, tensor_parallel_size / max(card.shape.num_kv_heads, 1))


def _gib(size: int) -> str:
    return f"{size / _GIB:.2f} GiB"


def _available_bytes(machine: Machine, *, num_gpus: int, gpu_memory_utilization: float) -> int:
    if not machine.gpus:
        return machine.memory_available_bytes
    smallest = min(gpu.memory_bytes for gpu in machine.gpus)
    return int(smallest * gpu_memory_utilization) * min(num_gpus, len(machine.gpus))


def _rank_problem(card: ModelCard, machine: Machine, tensor_parallel_size: int) -> str | None:
    """Say why a model cannot be cut into so many ranks here, or nothing."""
    heads, kv_heads = card.shape.num_attention_heads, card.shape.num_kv_heads
    if tensor_parallel_size == 1:
        return None
    if machine.gpus and tensor_parallel_size > len(machine.gpus):
        return (
            f"tensor_parallel_size {tensor_parallel_size} needs as many GPUs and there are "
            f"{len(machine.gpus)}"
        )
    if heads % tensor_parallel_size:
        return f"{heads} attention heads do not divide by tensor_parallel_size"
    small, large = sorted((max(kv_heads, 1), tensor_parallel_size))
    if large % small:
        return f"{kv_heads} KV heads do not spread over tensor_parallel_size"
    return None


def _possible_ranks(card: ModelCard, machine: Machine) -> list[int]:
    most = len(machine.gpus) or card.shape.num_attention_heads
    sizes = [n for n in (1, 2, 4, 8, 16) if n <= most]
    return [n for n in sizes if _rank_problem(card, machine, n) is None]


def _ranks_advice(card: ModelCard, report: FitReport, machine: Machine, per_gpu: int) -> str:
    """Name the number of GPUs it takes, and say when there are not so many."""
    heads = card.shape.num_attention_heads
    needed = next((n for n in (2, 4, 8, 16) if n * per_gpu >= report.total_bytes), None)
    if needed is None:
        return f"{_gib(report.total_bytes)} are more than 16 such GPUs have"
    if needed in _possible_ranks(card, machine):
        return f"set tensor_parallel_size to {needed}"
    why = f"{heads} heads do not divide by it" if heads % needed else "there are fewer here"
    return f"it would take {needed} such GPUs ({why})"


def _cache_advice(report: FitReport, rest: int) -> list[str]:
    """Say what the cache would have to shrink to, to fit into ``rest`` bytes."""
    if rest <= 0 or not report.kv_bytes:
        return []
    if report.is_kv_set:
        return [f"set kv_cache_bytes to {rest} or less"]
    advice: list[str] = []
    num_seqs = rest * report.num_full_seqs // report.kv_bytes
    if num_seqs:
        advice.append(f"set max_num_seqs to {num_seqs}")
    if not report.kv_bytes_per_token:
        return advice
    length = report.max_model_len * rest // report.kv_bytes // 16 * 16
    if length >= MIN_USEFUL_LENGTH:
        advice.append(f"set max_model_len to {length}")
    longest = report.max_model_len * rest * report.num_full_seqs // report.kv_bytes // 16 * 16
    if report.num_full_seqs > 1 and not num_seqs and longest >= MIN_USEFUL_LENGTH:
        advice.append(f"set max_model_len to {longest} and max_num_seqs to 1")
    return advice


def _advice(card: ModelCard, report: FitReport, machine: Machine) -> tuple[str, ...]:
    """Say what would make it fit, with numbers, most useful first."""
    taken = report.weights_bytes + report.overhead_bytes + report.adapters_bytes
    rest = report.available_bytes - taken
    advice = _cache_advice(report, rest)
    if report.adapters_bytes:
        advice.append(f"set max_loras to 0: {_gib(report.adapters_bytes)} for adapters")
    # The engine makes the forms without a source, and only on a GPU.
    for name in [form.name for form in card.variants if form.source or machine.gpus]:
        size = weights_bytes(card, dtype=report.dtype, quantization=name)
        if size < report.weights_bytes:
            advice.append(f"take quantization {name}: weights of {_gib(size)}")
    if machine.gpus:
        per_gpu = report.available_bytes // report.num_gpus
        advice.append(_ranks_advice(card, report, machine, per_gpu))
    advice.append(f"take a machine with {_gib(report.total_bytes)} free, or a smaller model")
    return tuple(advice)


def _kv_words(report: FitReport) -> str:
    if report.is_kv_set or not report.kv_bytes:
        return ""
    return f" for {report.num_full_seqs} x {report.max_model_len} tokens"


def _sizes(report: FitReport) -> str:
    adapters = f"adapters {_gib(report.adapters_bytes)}, " if report.adapters_bytes else ""
    return (
        f"needs {_gib(report.total_bytes)} (weights {_gib(report.weights_bytes)}, KV cache "
        f"{_gib(report.kv_bytes)}{_kv_words(report)}, "
        f"{adapters}engine {_gib(report.overhead_bytes)}) of {_gib(report.available_bytes)}"
    )


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
    num_full_seqs: int | None = None,
    adapters_bytes: int = 0,
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
            ``num_full_seqs`` sequences.
        num_full_seqs: Sequences of full length that must have room at once; by default all
            ``max_num_seqs``. Engines start with room for one and queue what has none.
        adapters_bytes: What the engine will set aside for LoRA adapters.

    Raises:
        ConfigError: The dtype is not one that engines store weights in.
    """
    dtype = card.dtype if dtype in (None, "auto") else dtype
    if dtype not in DTYPE_BYTES:
        raise ConfigError(f"dtype {dtype!r}: want one of {', '.join(DTYPE_BYTES)}", param="dtype")
    length = min(max_model_len or card.context, card.context)
    num_seqs = max_num_seqs or DEFAULT_MAX_NUM_SEQS
    num_gpus = min(tensor_parallel_size, max(len(machine.gpus), 1))
    weights = weights_bytes(card, dtype=dtype, quantization=quantization)
    per_token = int(
        kv_bytes_per_token(card, dtype=dtype)
        * kv_copies(card, tensor_parallel_size=tensor_parallel_size)
    )
    per_sequence = per_token * length + card.shape.state_bytes_per_sequence
    num_full = num_seqs if num_full_seqs is None else min(num_full_seqs, num_seqs)
    kv = per_sequence * num_full if kv_cache_bytes is None else kv_cache_bytes
    overhead = GPU_OVERHEAD_BYTES * num_gpus if machine.gpus else CPU_OVERHEAD_BYTES
    available = _available_bytes(
        machine, num_gpus=num_gpus, gpu_memory_utilization=gpu_memory_utilization
    )
    total = weights + kv + overhead + adapters_bytes
    report = FitReport(
        model_id=card.id,
        dtype=dtype,
        quantization=quantization,
        max_model_len=length,
        max_num_seqs=num_seqs,
        weights_bytes=weights,
        kv_bytes_per_token=per_token,
        kv_bytes=kv,
        full_kv_bytes=per_sequence * num_seqs,
        overhead_bytes=overhead,
        total_bytes=total,
        available_bytes=available,
        fits=total <= available,
        reason="",
        num_gpus=num_gpus,
        num_full_seqs=num_full,
        is_kv_set=kv_cache_bytes is not None,
        adapters_bytes=adapters_bytes,
    )
    return _judge(card, machine, report, tensor_parallel_size)


def _judge(
    card: ModelCard, machine: Machine, report: FitReport, tensor_parallel_size: int
) -> FitReport:
    """Add the reason and what to change."""
    problem = _rank_problem(card, machine, tensor_parallel_size)
    if problem is not None:
        ranks = _possible_ranks(card, machine)
        advice = (f"set tensor_parallel_size to {' or '.join(str(n) for n in ranks)}",)
        return replace(report, fits=False, reason=problem, advice=advice)
    advice = () if report.fits else _advice(card, report, machine)
    return replace(report, reason=_sizes(report), advice=advice)


def num_replicas_that_fit(report: FitReport, machine: Machine, *, held_bytes: int = 0) -> int:
    """Return how many such replicas this machine holds at once.

    On processors their memory is added up; on GPUs each takes whole GPUs of its own.

    Args:
        report: The estimate of one replica.
        machine: Where they should run.
        held_bytes: Memory that replicas counted here hold already (processors only).
    """
    if machine.gpus:
        return len(machine.gpus) // report.num_gpus if report.fits else 0
    return max(report.available_bytes + held_bytes, 0) // report.total_bytes
