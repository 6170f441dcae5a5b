"""Cards, machines and weights that tests build on."""

import json
import struct
from pathlib import Path
from typing import Any

from maas.catalog.card import ModelCard
from maas.catalog.machine import Gpu, Machine

GIB = 2**30


def make_card(**changes: Any) -> ModelCard:
    """A card with the shape of Llama-2 7B."""
    fields: dict[str, Any] = {
        "id": "tiny",
        "family": "llama",
        "architecture": "LlamaForCausalLM",
        "parameters": 6_738_415_616,
        "context": 4096,
        "modality": ["text"],
        "languages": ["en"],
        "licence": {"name": "Apache-2.0", "grade": "commercial"},
        "origin": "test",
        "source": ["hf://org/tiny@main"],
        "shape": {
            "num_layers": 32,
            "hidden_size": 4096,
            "num_attention_heads": 32,
            "num_kv_heads": 32,
            "head_dim": 128,
            "vocab_size": 32000,
        },
        "engines": ["vllm"],
    }
    return ModelCard.model_validate({**fields, **changes})


def make_machine(*gpu_gib: int, memory_gib: float = 64) -> Machine:
    """A machine with these GPUs."""
    return Machine(
        num_cores=8,
        memory_total_bytes=int(memory_gib * GIB),
        memory_available_bytes=int(memory_gib * GIB),
        disk_free_bytes=100 * GIB,
        gpus=tuple(Gpu("test", gib * GIB) for gib in gpu_gib),
    )


def safetensors_bytes(size: int = 4096) -> bytes:
    """One tensor of ``size`` bytes, as safetensors."""
    header = json.dumps({"w": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(i % 251 for i in range(size))


def write_weights(folder: Path, *, size: int = 4096) -> dict[str, bytes]:
    """Put a small whole model into a folder and return its files."""
    files = {
        "config.json": b'{"architectures": ["LlamaForCausalLM"]}',
        "model.safetensors": safetensors_bytes(size),
        "tokenizer.json": b"{}",
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return files
