"""Writes round-to-nearest int8 and int4 forms of a Llama-like model, as compressed-tensors.

The format is the one llm-compressor writes (https://github.com/vllm-project/compressed-tensors):
int8 with a scale per output channel and activations quantised per token as they come; int4 in
groups along the input with a scale each, packed eight to an int32.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
from safetensors.torch import load_file, save_file

INT4_GROUP = 64


def _int8(name: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
    """Quantise ``weight`` [out, in] to int8 with ``scale`` [out, 1]."""
    scale = weight.abs().amax(dim=1, keepdim=True).clamp(min=1e-8) / 127
    quantised = (weight / scale).round().clamp(-128, 127).to(torch.int8)
    return {f"{name}.weight": quantised, f"{name}.weight_scale": scale.to(torch.bfloat16)}


def _int4(name: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
    """Quantise ``weight`` [out, in] to packed [out, in/8] with ``scale`` [out, in/group]."""
    rows, columns = weight.shape
    grouped = weight.view(rows, columns // INT4_GROUP, INT4_GROUP)
    scale = grouped.abs().amax(dim=2, keepdim=True).clamp(min=1e-8) / 7
    quantised = (grouped / scale).round().clamp(-8, 7).to(torch.int8).view(rows, columns)
    return {
        f"{name}.weight_packed": pack_to_int32(quantised, 4),
        f"{name}.weight_scale": scale.squeeze(2).to(torch.bfloat16),
        f"{name}.weight_shape": torch.tensor([rows, columns]),
    }


def _config(kind: str) -> dict[str, object]:
    weights: dict[str, object] = {"type": "int", "symmetric": True, "dynamic": False}
    inputs: dict[str, object] | None = None
    if kind == "int8":
        weights |= {"num_bits": 8, "strategy": "channel"}
        inputs = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token"}
        inputs |= {"dynamic": True}
    else:
        weights |= {"num_bits": 4, "strategy": "group", "group_size": INT4_GROUP}
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs}
    return {
        "quant_method": "compressed-tensors",
        "format": "int-quantized" if kind == "int8" else "pack-quantized",
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {"group_0": group},
    }


_KINDS: dict[str, Callable[[str, torch.Tensor], dict[str, torch.Tensor]]] = {
    "int8": _int8,
    "int4": _int4,
}


def write_quantised(source: Path, target: Path, kind: str) -> None:
    """Write the ``kind`` (``int8`` or ``int4``) form of ``source`` to ``target``."""
    target.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        if path.suffix != ".safetensors":
            shutil.copy2(path, target / path.name)
    tensors: dict[str, torch.Tensor] = {}
    for shard in source.glob("*.safetensors"):
        for name, tensor in load_file(shard).items():
            if name.endswith("_proj.weight"):
                tensors |= _KINDS[kind](name.removesuffix(".weight"), tensor.float())
            else:
                tensors[name] = tensor
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((target / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] = _config(kind)
    (target / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
