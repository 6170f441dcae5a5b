"""Bundles of the tiny model that differ in their chat template: whole and signed."""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from maas.edge.runtime.bundle.archive import hash_file, pack
from maas.edge.runtime.bundle.manifest import Manifest, Part
from maas.edge.runtime.bundle.signing import load_or_make_key
from tests.fakes.device import USER

# The private half of a key, for exports that nobody checks the signature of.
SEED = "5e" * 32


@dataclass(frozen=True)
class Made:
    """A bundle's file, its id, and how many tokens its template makes of a chat."""

    path: Path
    bundle_id: str
    num_prompt_tokens: int


def make_bundle(
    graph: Path, out: Path, *, key: Path, tag: str = "", big_bytes: int = 0, **changes: Any
) -> Made:
    """Pack the tiny model with a template of its own."""
    folder = out.with_suffix(".source")
    shutil.copytree(graph, folder)
    if "broken_graph" in changes:
        (folder / "model.onnx").write_bytes(b"")
        del changes["broken_graph"]
    template = json.loads((folder / "tokenizer_config.json").read_text())["chat_template"]
    (folder / "chat_template.jinja").write_text(tag + template)
    if big_bytes:
        (folder / "big.bin").write_bytes(os.urandom(big_bytes))
    files = sorted(path for path in folder.iterdir() if path.is_file())
    parts = tuple(Part(p.name, p.stat().st_size, hash_file(p), "config") for p in files)
    manifest = Manifest(
        schema_version=1,
        bundle_id="",
        name=f"tiny{tag}",
        model_id="tiny",
        base_model_id="tiny",
        created_at=float(len(tag)),
        precision="int8",
        target="cpu",
        task="generate",
        licence={},
        lineage={},
        parts=parts,
        ram_required_bytes=1 << 20,
        max_model_len=512,
        cost_card={},
        receipt={},
    )
    manifest = msgspec.structs.replace(manifest, **changes)
    made = pack(folder, manifest, load_or_make_key(key), out)
    return Made(out, made.bundle_id, len(tag) + len(f"[user]{USER[0]['content']}[a]"))
