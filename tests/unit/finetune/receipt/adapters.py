"""Adapters that are drawn, not learned, and ways to spoil them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM


def tune(model_dir: Path, folder: Path, *, strength: float = 1.0) -> Path:
    """Write an adapter whose weights are drawn, not learned."""
    base = AutoModelForCausalLM.from_pretrained(str(model_dir), dtype=torch.float32)
    config = LoraConfig(
        task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules="all-linear", lora_dropout=0.1
    )
    torch.manual_seed(11)
    model = get_peft_model(base, config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.01 * strength)
    model.save_pretrained(str(folder))
    return folder


def change(
    source: Path,
    target: Path,
    *,
    tensors: Callable[[dict[str, torch.Tensor]], None] | None = None,
    **config: object,
) -> Path:
    """Copy an adapter with something changed."""
    shutil.copytree(source, target)
    path = target / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    if tensors is not None:
        weights = load_file(target / "adapter_model.safetensors")
        tensors(weights)
        save_file(weights, target / "adapter_model.safetensors", metadata={"format": "pt"})
    return target
