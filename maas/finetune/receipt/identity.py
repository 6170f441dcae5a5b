"""What a folder of weights is: hashes of its template, tokenizer and weights. Light.

Computed from files alone, so that the side that serves can be looked at without loading it.
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from maas.finetune.receipt.records import Identity

_TEMPLATE_FILE = "chat_template.jinja"
_CONFIG_FILE = "tokenizer_config.json"
# What decides which tokens a text becomes, by any of transformers' tokenizers.
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
)
_MANIFEST_FILE = "manifest.json"
_CHUNK = 1 << 20


def identify(folder: Path) -> Identity:
    """Return what a folder of prepared weights is."""
    return Identity(
        template=template_hash(folder), tokenizer=tokenizer_hash(folder), weights=_weights(folder)
    )


def template_hash(folder: Path) -> str | None:
    """Return the hash of the chat template's text; none where there is no template.

    The file beside the tokenizer wins over the tokenizer's configuration, as it does in
    transformers.
    """
    file = folder / _TEMPLATE_FILE
    template = (
        file.read_text(encoding="utf-8")
        if file.exists()
        else _tokenizer_config(folder).get("chat_template")
    )
    if template is None:
        return None
    text = template if isinstance(template, str) else json.dumps(template, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def tokenizer_hash(folder: Path) -> str | None:
    """Return the hash of the tokenizer; none where there is none.

    JSON is hashed by what it says, not by how it is laid out; the template has its own hash.
    """
    parts = {name: _part(folder / name) for name in _TOKENIZER_FILES if (folder / name).exists()}
    if not parts:
        return None
    config = _tokenizer_config(folder)
    config.pop("chat_template", None)
    return _digest([*sorted(parts.items()), (_CONFIG_FILE, _canonical(config))])


def files_hash(folder: Path, names: Iterable[str]) -> str:
    """Return the hash over names and bytes of those files that are there."""
    found = [name for name in sorted(names) if (folder / name).exists()]
    return _digest((name, _file_hash(folder / name)) for name in found)


def _weights(folder: Path) -> str | None:
    names = sorted(path.name for path in folder.glob("*.safetensors"))
    manifest = folder / _MANIFEST_FILE
    recorded: dict[str, Any] = {}
    if manifest.exists():
        # Hashed when they were prepared, and compared by `maas model verify`.
        recorded = json.loads(manifest.read_text(encoding="utf-8")).get("files", {})
    known = {name: recorded.get(name, {}).get("sha256") for name in names}
    hashes = [(name, known[name] or _file_hash(folder / name)) for name in names]
    return _digest(hashes) if hashes else None


def _tokenizer_config(folder: Path) -> dict[str, Any]:
    path = folder / _CONFIG_FILE
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


def _part(path: Path) -> str:
    if path.suffix != ".json":
        return _file_hash(path)
    return _canonical(json.loads(path.read_text(encoding="utf-8")))


def _canonical(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _digest(parts: Iterable[tuple[str, str]]) -> str:
    digest = hashlib.sha256()
    for name, inner in parts:
        digest.update(f"{name}:{inner}\n".encode())
    return digest.hexdigest()


def _file_hash(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
