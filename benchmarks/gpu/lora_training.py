"""LoRA training of a 7B-shaped model: ``python -m benchmarks.gpu.lora_training [--shape NAME]``.

Random weights, our trainer's own passes and optimizer, every token a target. Prints tokens a
second and MFU: 4 N FLOPs a token (forward 2 N; backward 2 N, as frozen weights get no gradient),
over the bf16 matrix product that the same run measures. Without a GPU it takes a tiny shape, so
that it is known to run. Recomputation, where memory asks for it, is not counted as work done.
"""

import argparse
import json
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from benchmarks.gpu.roofline import matmul_flops_s
from benchmarks.gpu.shapes import SHAPES, ModelShape
from maas.finetune.data.rendering import TokenisedExample
from maas.finetune.recipe import Recipe
from maas.finetune.train import attention
from maas.finetune.train.memory import must_recompute
from maas.finetune.train.model import TrainedModel, choose_device, training_dtype
from maas.finetune.train.optimizer import MasterAdamW
from maas.finetune.train.packing import PackedRow, pack

GOAL_MFU = 0.4
FLOPS_PER_WEIGHT = 4
TINY = ModelShape("tiny", 2, 64, 128, 4, 2, 256, tie_embeddings=True)
_WARMUPS = 2


@dataclass(frozen=True)
class Speed:
    """What was measured.

    Attributes:
        mfu: Share of the measured matrix product that training did.
        peak_bytes: Memory on the GPU; 0 on processors.
    """

    shape: str
    device: str
    tokens_per_s: float
    matmul_flops_s: float
    mfu: float
    loss: float
    peak_bytes: int
    is_recomputing: bool


def _model(shape: ModelShape, recipe: Recipe) -> TrainedModel:
    config = LlamaConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads,
        tie_word_embeddings=shape.tie_embeddings,
        use_cache=False,
    )
    device = choose_device()
    with device:
        base = AutoModelForCausalLM.from_config(
            config, dtype=training_dtype(device), attn_implementation=attention.NAME
        )
    return TrainedModel(Path(shape.name), recipe, device, 0, base=base)


def _row(shape: ModelShape, num_examples: int, length: int) -> PackedRow:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(shape.vocab_size, (num_examples, length), generator=generator)
    mask = [False] + [True] * (length - 1)
    return pack([TokenisedExample(example, mask) for example in ids.tolist()])


def measure(shape: ModelShape, *, num_examples: int, length: int, num_steps: int) -> Speed:
    """Train for some steps; the speed is the median step's."""
    recipe = Recipe(
        name="speed", description="-", method="pretrain", tuning="lora", learning_rate=1e-4
    )
    model = _model(shape, recipe)
    is_recomputing = must_recompute(model, num_examples * length)
    if is_recomputing:
        model.enable_recomputation()
    optimizer = MasterAdamW(model.trained(), recipe, learning_rate=1e-4, num_steps=num_steps + 2)
    row = _row(shape, num_examples, length).to(model.device)
    times, loss = [], 0.0
    for step in range(1, num_steps + _WARMUPS + 1):
        began = time.perf_counter()
        mean = -model.predict(row).logprobs.mean()
        mean.backward()
        optimizer.step(step)
        loss = float(mean.detach())  # also waits for the GPU
        times.append(time.perf_counter() - began)
    is_gpu = model.device.type == "cuda"
    peak_bytes = torch.cuda.max_memory_allocated() if is_gpu else 0
    del model, optimizer
    if is_gpu:
        torch.cuda.empty_cache()
    tokens_per_s = row.num_tokens / statistics.median(times[_WARMUPS:])
    limit = matmul_flops_s("cuda" if is_gpu else "cpu")
    return Speed(
        shape=shape.name,
        device=torch.cuda.get_device_name() if is_gpu else "cpu",
        tokens_per_s=tokens_per_s,
        matmul_flops_s=limit,
        mfu=FLOPS_PER_WEIGHT * shape.matmul_parameters * tokens_per_s / limit,
        loss=loss,
        peak_bytes=peak_bytes,
        is_recomputing=is_recomputing,
    )


def table(speed: Speed) -> str:
    """Return the Markdown table."""
    return "\n".join(
        (
            "| shape | device | tok/s | bf16 TFLOP/s | MFU (goal) | memory GiB | recomputes |",
            "|---|---|---|---|---|---|---|",
            f"| {speed.shape} | {speed.device} | {speed.tokens_per_s:,.0f} "
            f"| {speed.matmul_flops_s / 1e12:,.1f} | {speed.mfu:.1%} ({GOAL_MFU:.0%}) "
            f"| {speed.peak_bytes / 2**30:.1f} | {'yes' if speed.is_recomputing else 'no'} |",
        )
    )


def main(arguments: list[str] | None = None) -> None:
    """Measure, print."""
    shapes = {**SHAPES, TINY.name: TINY}
    parser = argparse.ArgumentParser(description=__doc__)
    default = "llama2-7b" if torch.cuda.is_available() else TINY.name
    parser.add_argument("--shape", choices=shapes, default=default)
    parser.add_argument("--examples", type=int, default=8, help="of one pass")
    parser.add_argument("--length", type=int, default=512, help="tokens of each")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(arguments)
    speed = measure(
        shapes[args.shape], num_examples=args.examples, length=args.length, num_steps=args.steps
    )
    sys.stdout.write((json.dumps(asdict(speed)) if args.json else table(speed)) + "\n")


if __name__ == "__main__":
    main()
