"""Adapters beside their base on one engine: ``python -m benchmarks.finetune.adapters``.

Starts the engine as the platform does, three times: without room for adapters, with it, and with
vLLM's own way of applying them. Prints what room for adapters costs the base, what eight mixed in
a batch cost, whether the base beside them still answers as it does alone, and what one adapter
more than there are slots costs. ``benchmarks.finetune.hot_load`` has the rest.
"""

import argparse
import asyncio
import json
import os
import platform as host
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median, quantiles

import aiohttp

from benchmarks.finetune.random_adapters import write_random_adapter
from maas.bootstrap import resolve_settings
from maas.catalog.catalog import load_catalog
from maas.catalog.machine import probe_machine
from maas.engines.contract import EngineSpec
from maas.engines.prepare import prepare_model
from maas.engines.process import EngineProcess
from maas.engines.tuning import tune
from maas.engines.vllm import VllmEngine
from maas.finetune.base_modules import BaseModules, read_base_modules
from maas.serving.options import parse_options
from maas.serving.replica import free_port

MODEL = "smollm2-135m-instruct"
BASE = "base"
WIDTHS = (1, 8, 16)
MIXED_WIDTHS = (8, 16, 32)
PROMPT = "Write a long story about a lighthouse keeper and the sea. Part {n}."
MIN_MIXED, MIN_BASE, MAX_CLIFF = 0.76, 0.97, 2.0


class StockVllm(VllmEngine):
    """vLLM's own server, whatever the platform would start."""

    def command(self, spec: EngineSpec) -> list[str]:
        """Return the command line of vLLM's own server, all layers open to adapters."""
        ours = super().command(replace(spec, lora_modules=()))
        stock = "vllm.entrypoints.openai.api_server"
        return [stock if word == "maas.engines.vllm_server" else word for word in ours]


@dataclass
class Engine:
    """An engine that answers, with adapters ``a0``, ``a1``, ..."""

    url: str
    client: aiohttp.ClientSession
    start_s: float

    async def ask(self, model: str, number: int, num_tokens: int) -> str:
        """Return a greedy answer of exactly so many tokens."""
        body = {
            "model": model,
            "prompt": PROMPT.format(n=number),
            "max_tokens": num_tokens,
            "temperature": 0,
            "ignore_eos": True,
        }
        async with self.client.post(f"{self.url}/v1/completions", json=body) as response:
            response.raise_for_status()
            return (await response.json())["choices"][0]["text"]

    async def tokens_per_s(self, models: Sequence[str], width: int, num_tokens: int) -> float:
        """Return the speed of ``width`` streams that take models in turn."""
        started = time.perf_counter()
        await asyncio.gather(
            *(self.ask(models[i % len(models)], i, num_tokens) for i in range(width))
        )
        return width * num_tokens / (time.perf_counter() - started)

    async def base_keeps_its_answer(self, adapters: Sequence[str]) -> bool:
        """Say whether the base answers beside adapters as it does alone."""
        alone = await self.ask(BASE, 0, 12)
        models = [BASE, *adapters]
        mixed = await asyncio.gather(*(self.ask(model, 0, 12) for model in models))
        return mixed[0] == alone

    async def seconds(
        self, models: Sequence[str], *, num_clients: int, num_each: int, num_tokens: int
    ) -> list[float]:
        """Return how long each request of clients took that ask one after the other."""

        async def client(number: int) -> list[float]:
            model, taken = models[number % len(models)], []
            for _ in range(num_each):
                started = time.perf_counter()
                await self.ask(model, number, num_tokens)
                taken.append(time.perf_counter() - started)
            return taken

        found = await asyncio.gather(*(client(number) for number in range(num_clients)))
        return [seconds for each in found for seconds in each]


@dataclass
class Figures:
    """What was measured of one engine."""

    start_s: float = 0.0
    base: dict[int, list[float]] = field(default_factory=dict)
    mixed: dict[int, list[tuple[float, float]]] = field(default_factory=dict)
    is_base_right: bool | None = None
    cliff: dict[str, float] = field(default_factory=dict)


@asynccontextmanager
async def running(spec: EngineSpec, engine: VllmEngine, folder: Path) -> AsyncIterator[Engine]:
    """Start an engine, yield it when it answers, stop it."""
    spec = replace(spec, port=free_port(spec.host))
    process = EngineProcess(
        engine, spec, home=folder, replica_id="bench", log_path=folder / "engine.log"
    )
    timeout = aiohttp.ClientTimeout(total=600)
    async with aiohttp.ClientSession(timeout=timeout) as client:
        started = time.monotonic()
        await process.start()
        try:
            await process.wait_ready(client, timeout_s=280)
            yield Engine(spec.url, client, time.monotonic() - started)
        finally:
            await process.stop(grace_s=5.0)


async def measure(
    engine: Engine, adapters: Sequence[Path], arguments: argparse.Namespace
) -> Figures:
    """Measure one engine; without adapters only the base."""
    figures = Figures(start_s=engine.start_s)
    num_tokens, rounds = arguments.tokens, range(arguments.rounds)
    await engine.tokens_per_s([BASE], 2, 8)
    for width in WIDTHS:
        speeds = [await engine.tokens_per_s([BASE], width, num_tokens) for _ in rounds]
        figures.base[width] = speeds
    if not adapters:
        return figures
    names = [f"a{number}" for number in range(len(adapters))]
    for name, folder in zip(names, adapters, strict=True):
        await VllmEngine().load_adapter(
            engine.client, engine.url, adapter_name=name, adapter_dir=folder
        )
    mixed = names[: arguments.max_loras]
    figures.is_base_right = await engine.base_keeps_its_answer(mixed)
    for width in MIXED_WIDTHS:
        await engine.tokens_per_s(mixed, width, 4)
        figures.mixed[width] = [
            (
                await engine.tokens_per_s([BASE], width, num_tokens),
                await engine.tokens_per_s(mixed, width, num_tokens),
            )
            for _ in rounds
        ]
    # As many clients both times; once they have one adapter more than there are slots.
    for label, models in (("max_loras", mixed), ("max_loras + 1", names)):
        taken = await engine.seconds(
            models, num_clients=len(names), num_each=2 * arguments.rounds, num_tokens=num_tokens
        )
        figures.cliff[label] = quantiles(taken, n=20)[-1]
    return figures


def report(found: dict[str, Figures]) -> str:
    """Return the tables as Markdown, with goals."""
    lines = ["| engine | start | " + " | ".join(f"base x{width}" for width in WIDTHS) + " |"]
    lines.append("|---" * (len(WIDTHS) + 2) + "|")
    for name, figures in found.items():
        speeds = " | ".join(f"{median(figures.base[width]):.1f}" for width in WIDTHS)
        lines.append(f"| {name} | {figures.start_s:.1f} s | {speeds} |")
    lines += ["", "| engine | streams | base tok/s | 8 adapters tok/s | of base | base is right |"]
    lines.append("|---|---|---|---|---|---|")
    for name, figures in found.items():
        for width, pairs in figures.mixed.items():
            base, mixed = (median(pair[i] for pair in pairs) for i in (0, 1))
            share = median(pair[1] / pair[0] for pair in pairs)
            is_right = {True: "yes", False: "NO", None: ""}[figures.is_base_right]
            lines.append(
                f"| {name} | {width} | {base:.1f} | {mixed:.1f} | {share:.0%} | {is_right} |"
            )
    lines += ["", "| engine | p95, max_loras | p95, max_loras + 1 | ratio |", "|---|---|---|---|"]
    for name, figures in found.items():
        if figures.cliff:
            full, over = figures.cliff["max_loras"], figures.cliff["max_loras + 1"]
            lines.append(f"| {name} | {full:.2f} s | {over:.2f} s | {over / full:.2f}x |")
    return "\n".join([*lines, "", *goals(found["without adapters"], found["with adapters"])])


def goals(without: Figures, ours: Figures) -> list[str]:
    """Return the table of goals."""
    base = min(median(ours.base[w]) / median(without.base[w]) for w in WIDTHS)
    mixed = min(median(pair[1] / pair[0] for pair in pairs) for pairs in ours.mixed.values())
    cliff = ours.cliff["max_loras + 1"] / ours.cliff["max_loras"]
    rows = [
        ("base with room for adapters, of base without", f"{base:.0%}", f">= {MIN_BASE:.0%}"),
        ("8 adapters mixed, of base", f"{mixed:.0%}", f">= {MIN_MIXED:.0%}"),
        ("p95 with max_loras + 1", f"{cliff:.2f}x", f"<= {MAX_CLIFF}x"),
    ]
    is_met = (base >= MIN_BASE, mixed >= MIN_MIXED, cliff <= MAX_CLIFF)
    words = [
        f"| {what} | {seen} | {limit} | {'met' if met else 'MISSED'} |"
        for (what, seen, limit), met in zip(rows, is_met, strict=True)
    ]
    return ["| goal | measured | limit | |", "|---|---|---|---|", *words]


def specs(arguments: argparse.Namespace) -> tuple[EngineSpec, BaseModules]:
    """Return how the platform would start the base here, and its modules.

    Raises:
        SystemExit: The base has no safetensors.
    """
    settings = resolve_settings()
    card = load_catalog(settings.models_dir).get_card(MODEL)
    machine = probe_machine(settings.weights_dir)
    options = parse_options({"max_loras": arguments.max_loras})
    prepared = prepare_model(card, weights_dir=settings.weights_dir, progress=lambda _: None)
    base = read_base_modules(prepared.model_dir)
    if base is None:
        raise SystemExit(f"{MODEL} has no safetensors")
    spec = tune(card, machine, options, engine="vllm").spec
    return replace(
        spec,
        served_model_name=BASE,
        model_dir=prepared.model_dir,
        lora_modules=base.names,
        cache_dir=settings.home / "cache" / "vllm",
        cpu_ids=tuple(sorted(os.sched_getaffinity(0))),
    ), base


async def run(arguments: argparse.Namespace, folder: Path) -> dict[str, Figures]:
    """Measure each engine in turn."""
    spec, base = specs(arguments)
    adapters = [
        write_random_adapter(folder / f"a{number}", base, r=arguments.r, seed=number)
        for number in range(arguments.max_loras + 1)
    ]
    kinds: dict[str, tuple[EngineSpec, VllmEngine, list[Path]]] = {
        "without adapters": (replace(spec, max_loras=0), VllmEngine(), []),
        "with adapters": (spec, VllmEngine(), adapters),
        "with adapters, vLLM's own way": (spec, StockVllm(), adapters),
    }
    found: dict[str, Figures] = {}
    for name, (wanted, engine, brought) in kinds.items():
        if name.endswith("own way") and arguments.skip_stock:
            continue
        async with running(wanted, engine, folder) as started:
            found[name] = await measure(started, brought, arguments)
        # A run that is cut short has not been for nothing.
        print(f"{name}: {vars(found[name])}", file=sys.stderr, flush=True)
    return found


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=48, help="of each answer")
    parser.add_argument("--max-loras", type=int, default=8)
    parser.add_argument("--r", type=int, default=8)
    parser.add_argument("--skip-stock", action="store_true", help="leave vLLM's own way out")
    parser.add_argument("--json", type=Path, help="write the figures here")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="maas-bench-") as folder:
        found = asyncio.run(run(arguments, Path(folder)))
    print(f"{time.strftime('%Y-%m-%d')}, {host.machine()}, {MODEL}, r {arguments.r}, ", end="")
    print(
        f"max_loras {arguments.max_loras}, {arguments.rounds} rounds of {arguments.tokens} tokens\n"
    )
    print(report(found))
    if arguments.json:
        figures = {name: vars(each) for name, each in found.items()}
        arguments.json.write_text(json.dumps(figures, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
