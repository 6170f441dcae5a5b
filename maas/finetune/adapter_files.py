"""What an adapter's folder may hold, and the hash of its content."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

# The configuration first: a reader that finds the weights finds both.
ADAPTER_NAMES = ("adapter_config.json", "adapter_model.safetensors")
_CHUNK = 1 << 20


@dataclass(frozen=True)
class AdapterFacts:
    """What is known of an adapter from its files.

    Attributes:
        id: SHA-256 over names and bytes of its files, in hex.
        r: Its rank.
    """

    id: str
    r: int
    target_modules: tuple[str, ...]
    size_bytes: int


def describe_adapter(folder: Path) -> AdapterFacts:
    """Return the facts of an adapter that the trainer wrote."""
    config = json.loads((folder / ADAPTER_NAMES[0]).read_text(encoding="utf-8"))
    targets = config["target_modules"]
    return AdapterFacts(
        id=content_hash(folder),
        r=int(config["r"]),
        target_modules=tuple(sorted([targets] if isinstance(targets, str) else targets)),
        size_bytes=sum((folder / name).stat().st_size for name in ADAPTER_NAMES),
    )


def content_hash(folder: Path) -> str:
    """Return the hash that names an adapter: the same bytes have the same name."""
    digest = hashlib.sha256()
    for name in ADAPTER_NAMES:
        inner = hashlib.sha256()
        with (folder / name).open("rb") as stream:
            while chunk := stream.read(_CHUNK):
                inner.update(chunk)
        digest.update(f"{name}:{inner.hexdigest()}\n".encode())
    return digest.hexdigest()
