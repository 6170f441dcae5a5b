"""Measures the two rates of the roofline: ``python -m benchmarks.gpu.roofline [--json]``.

Bandwidth is the best of three loops over buffers far larger than any cache: a copy (bytes
read plus bytes written), a sum (bytes read) and a matrix-vector product (bytes read: what
decode itself does with one sequence). Taking the best makes the limit the strictest one this
machine was seen to allow. The matrix product is bf16 on random data. Every figure is the
median of repeated runs, timed with device events on a GPU.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import psutil
import torch

from benchmarks.gpu.decode_limit import MachineLimits

_WARMUPS = 3
_REPEATS = 15


@dataclass(frozen=True)
class _Sizes:
    buffer_bytes: int
    matmul: int


_SIZES = {"cuda": _Sizes(4 * 2**30, 8192), "cpu": _Sizes(512 * 2**20, 2048)}


def _seconds_on_gpu(run: Callable[[], object]) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3


def _seconds_on_cpu(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def _median_s(device: str, run: Callable[[], object]) -> float:
    clock = _seconds_on_gpu if device == "cuda" else _seconds_on_cpu
    for _ in range(_WARMUPS):
        clock(run)
    return statistics.median(clock(run) for _ in range(_REPEATS))


def bandwidths_bytes_s(device: str) -> dict[str, float]:
    """Return bytes per second of each loop, by name."""
    size = _SIZES[device].buffer_bytes
    columns = 8192
    source = torch.randn(size // 2 // columns, columns, device=device, dtype=torch.bfloat16)
    target = torch.empty_like(source)
    vector = torch.randn(columns, device=device, dtype=torch.bfloat16)
    as_floats = source.view(torch.float32)
    return {
        "copy": 2 * size / _median_s(device, lambda: target.copy_(source)),
        "sum": size / _median_s(device, as_floats.sum),
        "matrix x vector": size / _median_s(device, lambda: source @ vector),
    }


def matmul_flops_s(device: str) -> float:
    """Return operations per second of a large square bf16 matrix product."""
    n = _SIZES[device].matmul
    left = torch.randn(n, n, device=device, dtype=torch.bfloat16)
    right = torch.randn_like(left)
    return 2 * n**3 / _median_s(device, lambda: left @ right)


def measure(device: str) -> tuple[MachineLimits, dict[str, float]]:
    """Return the limits and the bandwidth of each loop."""
    loops = bandwidths_bytes_s(device)
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        name, memory_bytes = properties.name, properties.total_memory
    else:
        name, memory_bytes = f"cpu x{torch.get_num_threads()}", psutil.virtual_memory().total
    limits = MachineLimits(
        device=name,
        memory_bytes=memory_bytes,
        bandwidth_bytes_s=max(loops.values()),
        matmul_flops_s=matmul_flops_s(device),
        torch=str(torch.__version__),
    )
    return limits, loops


def main() -> None:
    """Print the measured limits."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--device", choices=sorted(_SIZES), default="cuda")
    parser.add_argument("--json", action="store_true", dest="as_json")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        sys.exit(f"torch {torch.__version__} sees no GPU here; --device cpu measures processors")
    limits, loops = measure(arguments.device)
    if arguments.as_json:
        print(json.dumps({"limits": asdict(limits), "bandwidth_loops_bytes_s": loops}))
        return
    print(f"{limits.device}, {limits.memory_bytes / 2**30:.0f} GiB, torch {limits.torch}")
    print("| limit | measured |")
    print("|---|---|")
    for name, rate in loops.items():
        print(f"| bandwidth, {name} | {rate / 1e9:,.0f} GB/s |")
    print(f"| bandwidth used | {limits.bandwidth_bytes_s / 1e9:,.0f} GB/s |")
    print(f"| bf16 matrix product | {limits.matmul_flops_s / 1e12:,.2f} TFLOP/s |")


if __name__ == "__main__":
    main()
