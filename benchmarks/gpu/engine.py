"""Starts vLLM on a shape with random weights, as the platform starts it."""

import math
import re
import socket
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import aiohttp

from benchmarks.gpu.adapters import target_sizes
from benchmarks.gpu.load import Target
from benchmarks.gpu.shapes import ModelShape, write_model_dir
from maas.core.errors import ConfigError
from maas.engines.contract import EngineSpec
from maas.engines.http import get_text
from maas.engines.process import EngineProcess
from maas.engines.vllm import VllmEngine

_MODEL = "bench"
_START_TIMEOUT_S = 900.0
_CPU_BLOCK_SIZE = 128
# They change the bytes of a step, so that the roofline printed beside them would be wrong.
_CHANGES_THE_ROOFLINE = ("--quantization", "-q", "--kv-cache-dtype", "--dtype")


@dataclass(frozen=True)
class EngineOptions:
    """How to start the engine.

    Attributes:
        max_model_len: Prompt and answer of one stream together, in tokens.
        max_loras: Adapters in one batch; 0 serves the base model only.
        extra_engine_args: Handed to vLLM as they are.
    """

    device: Literal["cuda", "cpu"]
    max_num_seqs: int
    max_model_len: int
    gpu_memory_utilization: float = 0.92
    max_loras: int = 0
    max_lora_rank: int = 16
    extra_engine_args: tuple[str, ...] = ()


@dataclass(frozen=True)
class KvCache:
    """vLLM's paged KV cache; ``block_size`` in tokens."""

    num_blocks: int
    block_size: int

    def streams_that_fit(self, tokens_per_stream: int) -> int:
        """Return how many streams of this final length it holds at once.

        A stream takes whole blocks, and vLLM keeps one block for itself.
        """
        return (self.num_blocks - 1) // math.ceil(tokens_per_stream / self.block_size)


@dataclass(frozen=True)
class RunningEngine:
    """An engine that answers.

    Attributes:
        kv_cache: As it says itself.
    """

    target: Target
    client: aiohttp.ClientSession
    kv_cache: KvCache


def check_engine_args(arguments: Sequence[str]) -> None:
    """Refuse arguments under which the printed roofline would not hold.

    Raises:
        ConfigError: One of them changes the size of weights or KV cache.
    """
    for argument in arguments:
        if argument.partition("=")[0] in _CHANGES_THE_ROOFLINE:
            raise ConfigError(f"{argument} changes the bytes a step reads; the roofline is bf16's")


def kv_cache_of(metrics_page: str) -> KvCache:
    """Return the size of the KV cache, from vLLM's ``/metrics`` page.

    Raises:
        ConfigError: The page does not say.
    """
    for line in metrics_page.splitlines():
        if line.startswith("vllm:cache_config_info{"):
            labels = dict(re.findall(r'(\w+)="([^"]*)"', line))
            try:
                return KvCache(int(labels["num_gpu_blocks"]), int(labels["block_size"]))
            except (KeyError, ValueError):
                break
    raise ConfigError("vLLM's /metrics page does not say how large its KV cache is")


def free_port() -> int:
    """Return a port of the loopback address that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _module_names(shape: ModelShape) -> tuple[str, ...]:
    return tuple(sorted(path.rpartition(".")[2] for path in target_sizes(shape)))


def _spec(shape: ModelShape, options: EngineOptions, folder: Path) -> EngineSpec:
    # On processors the size is ours to choose: whole blocks for each stream, and vLLM's own.
    blocks_per_stream = math.ceil(options.max_model_len / _CPU_BLOCK_SIZE)
    kv_tokens = (options.max_num_seqs * blocks_per_stream + 1) * _CPU_BLOCK_SIZE
    return EngineSpec(
        served_model_name=_MODEL,
        model_dir=folder / "model",
        port=free_port(),
        device=options.device,
        dtype="bfloat16",
        max_model_len=options.max_model_len,
        max_num_seqs=options.max_num_seqs,
        kv_cache_bytes=kv_tokens * shape.kv_bytes_per_token,
        gpu_memory_utilization=options.gpu_memory_utilization,
        max_loras=options.max_loras,
        max_lora_rank=options.max_lora_rank,
        # As a replica reads them off real weights; without, the embedding is open to them too.
        lora_modules=_module_names(shape) if options.max_loras else (),
        cache_dir=folder / "cache",
        extra_engine_args=(
            *("--load-format", "dummy", "--no-enable-prefix-caching"),
            *options.extra_engine_args,
        ),
    )


@asynccontextmanager
async def running_engine(shape: ModelShape, options: EngineOptions) -> AsyncIterator[RunningEngine]:
    """Start the engine, yield it when it answers, stop it.

    Raises:
        EngineStartFailed: It ended or did not answer in time; the message says why.
    """
    check_engine_args(options.extra_engine_args)
    with tempfile.TemporaryDirectory(prefix="maas-gpu-") as name:
        folder = Path(name)
        write_model_dir(shape, folder / "model")
        spec = _spec(shape, options, folder)
        process = EngineProcess(
            VllmEngine(), spec, home=folder, replica_id="bench", log_path=folder / "engine.log"
        )
        connector = aiohttp.TCPConnector(limit=0)
        timeout = aiohttp.ClientTimeout(total=None, sock_read=600.0)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as client:
            await process.start()
            try:
                await process.wait_ready(client, timeout_s=_START_TIMEOUT_S)
                page = await get_text(client, f"{spec.url}/metrics")
                target = Target("vllm", spec.url, (_MODEL,))
                yield RunningEngine(target, client, kv_cache_of(page))
            finally:
                await process.stop(grace_s=10.0)
