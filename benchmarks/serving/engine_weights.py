"""Forms of the weights on the CPU engine: speed, memory, and whether the answers are equal.

``python -m benchmarks.serving.engine_weights MODEL_DIR [KIND ...]``. The reference is float32:
its greedy answers are scored by every other form, each token after its true predecessors, so one
early difference does not count for all that follow. What bfloat16 scores is the noise a form may
have. The quantised forms are plain round-to-nearest: a lower bound of what a calibrated one has.
"""

import asyncio
import dataclasses
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.serving.engine_harness import (
    PROMPTS,
    Answer,
    greedy_answers,
    likelihood,
    running,
    spec_for,
    tokens_per_s,
)
from benchmarks.serving.quantised_weights import write_quantised

FORMS = ("float32", "bfloat16", "int8", "int4")


@dataclasses.dataclass(frozen=True)
class Result:
    """What one form of the weights does; ``equal`` is the share of answers that are the same."""

    tokens_per_s: list[float]
    memory_bytes: int
    weights_bytes: int
    answers: list[Answer]
    equal: float
    first_choice: float
    nats: float


async def measure(
    model_dir: Path, cache_dir: Path, *, dtype: str, reference: Sequence[Answer] | None
) -> Result:
    """Serve one folder of weights and measure it; without a reference it is the reference."""
    spec = dataclasses.replace(spec_for(model_dir, cache_dir=cache_dir), dtype=dtype)
    async with running(spec) as engine:
        for batch in (1, 8, 32):
            await tokens_per_s(engine, batch=batch, num_tokens=8)
        speeds = [await tokens_per_s(engine, batch=batch) for batch in (1, 8, 32)]
        answers = await greedy_answers(engine, PROMPTS)
        wanted = reference or answers
        first_choice, nats = await likelihood(engine, wanted)
        return Result(
            tokens_per_s=speeds,
            memory_bytes=engine.memory_bytes,
            weights_bytes=_weights_bytes(model_dir),
            answers=answers,
            equal=sum(a == b for a, b in zip(answers, wanted, strict=True)) / len(wanted),
            first_choice=first_choice,
            nats=nats,
        )


def _weights_bytes(model_dir: Path) -> int:
    return sum(path.stat().st_size for path in model_dir.glob("*.safetensors"))


def _row(name: str, result: Result) -> str:
    cells = [f"{speed:.0f}" for speed in result.tokens_per_s]
    cells += [f"{size / 2**20:.0f}" for size in (result.weights_bytes, result.memory_bytes)]
    cells += [f"{result.first_choice:.1%}", f"{result.nats:.3f}", f"{result.equal:.0%}"]
    return f"| {name} | " + " | ".join(cells) + " |"


async def main(arguments: list[str]) -> None:
    """Print the table, one row a form."""
    source, forms = Path(arguments[0]), arguments[1:] or FORMS
    print("| weights | tok/s 1 | 8 | 32 | file MiB | MiB | first choice | nats | equal |")
    print("|---|---|---|---|---|---|---|---|---|")
    reference: list[Answer] | None = None
    with tempfile.TemporaryDirectory() as folder:
        for form in forms:
            model_dir, dtype = source, form
            if form.startswith("int"):
                model_dir, dtype = Path(folder, form), "bfloat16"
                write_quantised(source, model_dir, form)
            result = await measure(
                model_dir, Path(folder, "cache"), dtype=dtype, reference=reference
            )
            reference = reference or result.answers
            print(_row(form, result), flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
