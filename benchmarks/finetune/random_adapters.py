"""Random LoRA adapters of a base: what they cost depends on their shapes, not their values."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from maas.finetune.adapter_files import CONFIG_NAME, WEIGHTS_NAME
from maas.finetune.base_modules import BaseModules


def write_random_adapter(
    folder: Path, base: BaseModules, *, r: int = 8, seed: int, scale: float = 0.05
) -> Path:
    """Write an adapter of all linear layers that changes what the base answers.

    Args:
        folder: New folder.
        base: Modules of the base.
        r: Rank.
        seed: Another one is another adapter.
        scale: Standard deviation of its numbers.
    """
    draw = np.random.default_rng(seed)
    tensors: dict[str, np.ndarray] = {}
    for module, shape in base.shapes.items():
        if shape is None:
            continue
        for part, sides in (("A", (r, shape[1])), ("B", (shape[0], r))):
            numbers = draw.standard_normal(sides, dtype=np.float32) * scale
            tensors[f"base_model.model.{module}.lora_{part}.weight"] = numbers
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": r,
        "lora_alpha": 2 * r,
        "bias": "none",
        "target_modules": list(base.names),
    }
    folder.mkdir(parents=True)
    (folder / CONFIG_NAME).write_text(json.dumps(config), encoding="utf-8")
    save_file(tensors, folder / WEIGHTS_NAME)
    return folder
