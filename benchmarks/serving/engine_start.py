"""Where a CPU engine's start goes and what each stock switch changes.

``python -m benchmarks.serving.engine_start MODEL_DIR [VARIANT ...]``; the first row is the
adapter as it is, each other row changes one thing.
"""

import asyncio
import dataclasses
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from benchmarks.serving.engine_harness import first_token_s, running, spec_for, tokens_per_s


@dataclasses.dataclass(frozen=True)
class Variant:
    """One way to start the engine."""

    arguments: tuple[str, ...] = ()
    variables: Mapping[str, str | None] = dataclasses.field(default_factory=dict)


VARIANTS = {
    "default": Variant(),
    "worker in a process of its own": Variant(
        ("--distributed-executor-backend", "mp"),
        {
            "VLLM_ENABLE_V1_MULTIPROCESSING": None,
            "OMP_NUM_THREADS": None,
            "VLLM_CPU_OMP_THREADS_BIND": "0,1",
        },
    ),
    "no plugins": Variant(variables={"VLLM_PLUGINS": ""}),
    "passive OpenMP waits": Variant(variables={"OMP_WAIT_POLICY": "PASSIVE"}),
    "optimisation level 0": Variant(("-O0",)),
    "512 tokens a step": Variant(("--max-num-batched-tokens", "512")),
    "prefetch weights": Variant(("--safetensors-load-strategy", "prefetch")),
    "language model only": Variant(("--language-model-only",)),
}


async def measure(name: str, model_dir: Path, cache_dir: Path) -> str:
    """Return one row of the table."""
    variant = VARIANTS[name]
    spec = dataclasses.replace(
        spec_for(model_dir, cache_dir=cache_dir), extra_engine_args=variant.arguments
    )
    async with running(spec, variables=variant.variables) as engine:
        first = await first_token_s(engine)
        speeds = [await tokens_per_s(engine, batch=batch) for batch in (1, 8, 32)]
        cells = [f"{engine.start_s:.1f}", f"{engine.start_s + first:.1f}"]
        cells += [f"{speed:.0f}" for speed in speeds]
        cells += [f"{engine.memory_bytes / 2**20:.0f}"]
    return f"| {name} | " + " | ".join(cells) + " |"


async def main(arguments: list[str]) -> None:
    """Print the table; the cache folder is warm for every row but the first."""
    model_dir, names = Path(arguments[0]), arguments[1:] or list(VARIANTS)
    print("| start | ready s | first token s | tok/s 1 | tok/s 8 | tok/s 32 | MiB |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as cache_dir:
        cold = await measure("default", model_dir, Path(cache_dir))
        print(cold.replace("default", "default, cold cache"), flush=True)
        for name in names:
            print(await measure(name, model_dir, Path(cache_dir)), flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
