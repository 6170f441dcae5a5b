"""Merges a PEFT adapter into its base."""

import shutil
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from maas.core.errors import AdapterRefused

# Of the base's folder, what is not weights: tokenizer, template, generation settings.
_BESIDE = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "tokenizer.model"),
    *("chat_template.jinja", "generation_config.json"),
)


def merge_adapter(model_dir: Path, adapter_dir: Path, out: Path) -> Path:
    """Write the base with an adapter in its weights, bfloat16.

    Args:
        model_dir: The base.
        adapter_dir: ``adapter_config.json`` and ``adapter_model.safetensors``.
        out: A new folder.

    Raises:
        AdapterRefused: It does not fit the base.
    """
    # Added in float32: small changes would be lost in bfloat16's steps.
    base = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    try:
        merged = PeftModel.from_pretrained(base, str(adapter_dir)).merge_and_unload()
    except (ValueError, RuntimeError, KeyError, OSError) as error:
        raise AdapterRefused(f"the adapter does not fit {model_dir.name}: {error}") from error
    out.mkdir(parents=True, exist_ok=True)
    merged.to(torch.bfloat16).save_pretrained(out)
    for name in _BESIDE:
        if (model_dir / name).exists():
            shutil.copyfile(model_dir / name, out / name)
    return out
