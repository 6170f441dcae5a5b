"""What many LoRA adapters in one batch cost: ``python -m benchmarks.gpu.lora_serving``.

One vLLM with ``max_loras`` adapter slots serves the base model and 1, 8, 9 and 64 random
adapters, streams taking adapters in turn; every count is compared with the base model on the
same engine, wave by wave. One more than ``max_loras`` shows what happens at the cliff.
"""

import argparse
import asyncio
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import uvloop

from benchmarks.gpu.adapters import write_adapters
from benchmarks.gpu.engine import EngineOptions, RunningEngine, running_engine
from benchmarks.gpu.load import Target, WaveResult, WaveSize
from benchmarks.gpu.report import paired_ratio, save
from benchmarks.gpu.serving import alternate, installed_versions
from benchmarks.gpu.shapes import SHAPES, ModelShape
from maas.core.errors import MaasError
from maas.engines.vllm import VllmEngine


async def load_adapters(engine: RunningEngine, folders: Sequence[Path]) -> None:
    """Make every adapter answer under its folder's name.

    Raises:
        EngineError: The engine refused one.
    """
    for folder in folders:
        await VllmEngine().load_adapter(
            engine.client, engine.target.url, adapter_name=folder.name, adapter_dir=folder
        )


def targets_of(base: Target, names: Sequence[str], counts: Sequence[int]) -> list[Target]:
    """Return the base model and one target for each number of adapters."""
    mixed = [replace(base, name=str(count), models=tuple(names[:count])) for count in counts]
    return [replace(base, name="base"), *mixed]


def lora_table(results: Mapping[str, Sequence[WaveResult]]) -> str:
    """Return the Markdown table; every row is compared with the base model's rounds."""
    base = results["base"]
    lines = ["| adapters | all tok/s | of base | p95 s | of base |", "|---|---|---|---|---|"]
    for name, waves in results.items():
        speed = statistics.median(wave.output_tokens_s for wave in waves)
        p95_s = statistics.median(wave.p95_s for wave in waves)
        pairs = zip(waves, base, strict=True)
        slower = statistics.median(wave.p95_s / other.p95_s for wave, other in pairs)
        lines.append(
            f"| {name} | {speed:,.0f} | {paired_ratio(waves, base):.1%} | {p95_s:.2f} "
            f"| {slower:.2f}x |"
        )
    return "\n".join(lines)


async def measure(shape: ModelShape, arguments: argparse.Namespace) -> dict[str, list[WaveResult]]:
    """Return the rounds of the base model and of each number of adapters.

    Raises:
        MaasError: The engine did not start or refused an adapter.
        ValueError: A stream was refused or broke off.
    """
    most = max(arguments.adapters)
    options = EngineOptions(
        device=arguments.device,
        max_num_seqs=arguments.streams,
        max_model_len=arguments.prompt_len + arguments.output_len,
        max_loras=arguments.max_loras,
        max_lora_rank=arguments.r,
        extra_engine_args=("--max-cpu-loras", str(max(most, arguments.max_loras))),
    )
    size = WaveSize(arguments.streams, arguments.prompt_len, arguments.output_len, shape.vocab_size)
    with tempfile.TemporaryDirectory(prefix="maas-lora-") as name:
        folders = await asyncio.to_thread(
            write_adapters, shape, Path(name), count=most, r=arguments.r
        )
        async with running_engine(shape, options) as engine:
            await load_adapters(engine, folders)
            names = [folder.name for folder in folders]
            targets = targets_of(engine.target, names, arguments.adapters)
            return await alternate(engine, targets, size, rounds=arguments.rounds)


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the command line's values."""
    parser = argparse.ArgumentParser(description="Many LoRA adapters in one batch.")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--shape", choices=sorted(SHAPES), default="llama2-7b")
    parser.add_argument("--adapters", nargs="+", type=int, default=[1, 8, 9, 64])
    parser.add_argument("--max-loras", type=int, default=8)
    parser.add_argument("--r", type=int, default=16)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--prompt-len", type=int, default=128)
    parser.add_argument("--output-len", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="JSON file.")
    return parser.parse_args(argv)


async def run(arguments: argparse.Namespace) -> int:
    """Measure, print, save; return 1 when it could not be measured."""
    shape = SHAPES[arguments.shape]
    try:
        results = await measure(shape, arguments)
    except (MaasError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    versions = installed_versions()
    print(
        f"{shape.name}, {arguments.streams} streams of {arguments.prompt_len} + "
        f"{arguments.output_len} tokens, r {arguments.r}, max_loras {arguments.max_loras}; "
        f"versions {versions}\n"
    )
    print(lora_table(results))
    if arguments.out:
        rounds = {name: [asdict(wave) for wave in waves] for name, waves in results.items()}
        settings = {k: v for k, v in vars(arguments).items() if k != "out"}
        save(arguments.out, {"settings": settings, "versions": versions, "rounds": rounds})
    return 0


if __name__ == "__main__":
    sys.exit(uvloop.run(run(parse_arguments())))
