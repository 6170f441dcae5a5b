"""Random LoRA adapters in PEFT's format: what they cost depends on their rank, not their values."""

import json
import os
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from benchmarks.gpu.shapes import ModelShape

_SEED = 7
_SCALE = 1e-3


def target_sizes(shape: ModelShape) -> dict[str, tuple[int, int]]:
    """Return input and output width of each linear module of a layer, by its path."""
    hidden, kv_width = shape.hidden_size, shape.num_kv_heads * shape.head_dim
    return {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (hidden, kv_width),
        "self_attn.v_proj": (hidden, kv_width),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (hidden, shape.intermediate_size),
        "mlp.up_proj": (hidden, shape.intermediate_size),
        "mlp.down_proj": (shape.intermediate_size, hidden),
    }


def _tensors(shape: ModelShape, r: int) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(_SEED)
    tensors: dict[str, np.ndarray] = {}
    for layer in range(shape.num_layers):
        for module, (width_in, width_out) in target_sizes(shape).items():
            prefix = f"base_model.model.model.layers.{layer}.{module}"
            for name, size in (("lora_A", (r, width_in)), ("lora_B", (width_out, r))):
                values = draw.standard_normal(size, dtype=np.float32) * _SCALE
                tensors[f"{prefix}.{name}.weight"] = values.astype(np.float16)
    return tensors


def write_adapters(shape: ModelShape, folder: Path, *, count: int, r: int) -> list[Path]:
    """Write ``count`` adapters on all linear modules; return their folders.

    They share one file of weights: to the engine each is an adapter of its own, and 64 of a
    7B would otherwise take 5 GB of disk.
    """
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": shape.name,
        "r": r,
        "lora_alpha": 2 * r,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": [module.rpartition(".")[2] for module in target_sizes(shape)],
    }
    folders = [folder / f"adapter-{number}" for number in range(count)]
    for number, adapter in enumerate(folders):
        adapter.mkdir(parents=True)
        (adapter / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
        weights = adapter / "adapter_model.safetensors"
        if number == 0:
            save_file(_tensors(shape, r), weights)
        else:
            os.link(folders[0] / weights.name, weights)
    return folders
