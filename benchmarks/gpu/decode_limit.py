"""The decode roofline: the most tokens per second a machine's memory and units allow.

One decode step of ``B`` sequences at mean context ``c`` reads every weight that takes part in
a matrix product once and the KV cache of all sequences once, and computes two operations per
weight and sequence plus the attention scores and sums (Pope et al. 2022, Efficiently Scaling
Transformer Inference, section 2; Williams et al. 2009 for the roofline itself)::

    bytes = 2 W + B c k             W matmul weights (bf16), k KV bytes per token
    flops = 2 W B + 4 L h d c B     L layers, h query heads of width d
    limit = B / max(bytes / bandwidth, flops / matmul rate)    tokens per second

The input embedding is looked up, not read through, and is left out. Activations, sampling,
norms and the write of the new KV entry are left out too: all small, and leaving them out only
makes the limit higher. Both rates are measured on the machine in the same run
(``benchmarks.gpu.roofline``), never taken from a data sheet.
"""

from dataclasses import dataclass

from benchmarks.gpu.shapes import BF16_BYTES, ModelShape


@dataclass(frozen=True)
class MachineLimits:
    """What a machine was measured to do.

    Attributes:
        device: Its name.
        memory_bytes: Its memory.
        bandwidth_bytes_s: The fastest of the read and copy loops, bytes per second.
        matmul_flops_s: A large bf16 matrix product, operations per second.
        torch: Version of the library that measured.
    """

    device: str
    memory_bytes: int
    bandwidth_bytes_s: float
    matmul_flops_s: float
    torch: str


def step_bytes(shape: ModelShape, *, num_streams: int, mean_context: float) -> float:
    """Return the bytes one decode step must read."""
    kv_bytes = num_streams * mean_context * shape.kv_bytes_per_token
    return BF16_BYTES * shape.matmul_parameters + kv_bytes


def step_flops(shape: ModelShape, *, num_streams: int, mean_context: float) -> float:
    """Return the operations of one decode step."""
    attention = 4 * shape.num_layers * shape.num_heads * shape.head_dim * mean_context
    return num_streams * (2 * shape.matmul_parameters + attention)


def decode_limit_tokens_s(
    shape: ModelShape, limits: MachineLimits, *, num_streams: int, mean_context: float
) -> float:
    """Return the decode roofline of a batch in tokens per second."""
    size = {"num_streams": num_streams, "mean_context": mean_context}
    memory_s = step_bytes(shape, **size) / limits.bandwidth_bytes_s
    compute_s = step_flops(shape, **size) / limits.matmul_flops_s
    return num_streams / max(memory_s, compute_s)
