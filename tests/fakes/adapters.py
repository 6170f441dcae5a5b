"""Adapters and tuned models for tests: small, random, and as wrong as one wants them."""

import hashlib
import json
import random
import struct
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from maas.bootstrap.store import Store
from maas.core.ids import new_id
from maas.finetune.adapter_files import CONFIG_NAME, WEIGHTS_NAME
from maas.store.adapters import TunedKind, TunedModel, TunedState, engine_name

CONFIG: dict[str, Any] = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "r": 4,
    "lora_alpha": 8,
    "lora_dropout": 0.0,
    "bias": "none",
    "target_modules": ["q_proj", "down_proj"],
    "base_model_name_or_path": "somewhere/else",
}
# Of a base of two layers: module -> (out, in).
SHAPES = {
    f"model.layers.{layer}.{name}": shape
    for layer in (0, 1)
    for name, shape in {
        "self_attn.q_proj": (8, 8),
        "self_attn.k_proj": (4, 8),
        "mlp.down_proj": (8, 16),
    }.items()
}


def tensors_of(config: Mapping[str, Any] = CONFIG) -> dict[str, tuple[str, list[int], bytes]]:
    """Return name -> dtype, shape, bytes of an adapter that is all right."""
    r, found = config["r"], {}
    source = random.Random(7)
    for module, (num_out, num_in) in SHAPES.items():
        if module.rpartition(".")[2] not in config["target_modules"]:
            continue
        for part, shape in (("A", [r, num_in]), ("B", [num_out, r])):
            numbers = [source.uniform(-1, 1) for _ in range(shape[0] * shape[1])]
            name = f"base_model.model.{module}.lora_{part}.weight"
            found[name] = ("F32", shape, struct.pack(f"<{len(numbers)}f", *numbers))
    return found


def safetensors_of(tensors: Mapping[str, tuple[str, list[int], bytes]]) -> bytes:
    """Return a safetensors file."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, (dtype, shape, raw) in tensors.items():
        offsets = [len(data), len(data) + len(raw)]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
        data += raw
    return framed(json.dumps(header).encode(), data)


def framed(header: bytes, data: bytes) -> bytes:
    """Return a file of a header and its data."""
    return struct.pack("<Q", len(header)) + header + data


def write_adapter(
    folder: Path, config: Mapping[str, Any] = CONFIG, weights: bytes | None = None
) -> Path:
    """Write an adapter's two files."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG_NAME).write_text(json.dumps(config))
    whole = safetensors_of(tensors_of()) if weights is None else weights
    (folder / WEIGHTS_NAME).write_bytes(whole)
    return folder


def tuned_model(
    store: Store,
    project_id: str,
    *,
    base: str = "tiny",
    content: str = "",
    state: TunedState = TunedState.PUBLISHED,
) -> TunedModel:
    """Write down a tuned model of an adapter; nobody looks for its files.

    Args:
        store: Where.
        project_id: Whose.
        base: Its base.
        content: What its adapter's id is made of; by default of its own.
        state: Of the model.
    """
    adapter_id = hashlib.sha256((content or new_id("a")).encode()).hexdigest()
    store.adapters.add(
        adapter_id, base_model_id=base, r=8, target_modules=("q_proj",), size_bytes=10
    )
    model = TunedModel(
        id=f"ft:{base}:org::{new_id('t')[-8:]}",
        project_id=project_id,
        base_model_id=base,
        kind=TunedKind.ADAPTER,
        adapter_id=adapter_id,
        weights_key=None,
        job_id=None,
        step=None,
        state=state,
        lineage={},
        licence={},
        receipt=None,
        created_at=time.time(),
        published_at=time.time(),
        deleted_at=None,
    )
    return store.tuned_models.add(model)


def whole_model(
    store: Store,
    project_id: str,
    *,
    base: str = "tiny",
    state: TunedState = TunedState.PUBLISHED,
) -> TunedModel:
    """Write down a model that was tuned whole; nobody looks for its weights."""
    model = tuned_model(store, project_id, base=base, state=TunedState.REFUSED)
    weights = hashlib.sha256(model.id.encode()).hexdigest()
    whole = replace(
        model,
        id=f"{model.id}w",
        kind=TunedKind.FULL,
        adapter_id=None,
        weights_key=f"weights/{weights}",
        state=state,
    )
    return store.tuned_models.add(whole)


def adapter_name(model: TunedModel) -> str:
    """Return what engines call a tuned model."""
    assert model.adapter_id is not None
    return engine_name(model.adapter_id)
