"""Weights of a model that was tuned whole, by their content. Light: no ML library.

What is served is the tuned weights with the base's own configuration, tokenizer and chat template.
Its id is the hash of its index, which has the hash of each file:

    blobs       weights/<id>/<file> ..., weights/<id>/files.json last
    MAAS_HOME   weights/<id>/, with a manifest as prepared weights have: whole or not at all
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from maas.catalog.weights.files import check_name, hash_file
from maas.catalog.weights.manifest import (
    Manifest,
    read_manifest,
    record_files,
    verify_folder,
    write_manifest,
)
from maas.core.errors import WeightsCorrupt
from maas.engines.prepare import PreparedModel
from maas.store.blobs import Blobs

INDEX_NAME = "files.json"
_NAME_LENGTH = 24
# Of the base; its weights and what was recorded of them stay behind.
_KEPT_SUFFIXES = frozenset({".json", ".jinja", ".txt", ".model"})
_CONFIG_NAME = "config.json"


def blob_key_of(weights: str) -> str:
    """Return where whole weights are stored."""
    return f"weights/{weights}"


def engine_name_of(weights: str) -> str:
    """Return the name engines know whole weights by: their content."""
    return f"weights-{weights[:_NAME_LENGTH]}"


def assemble(checkpoint: Path, base_dir: Path, out: Path, *, dtype: str) -> None:
    """Put together what is served, whole or not at all; nothing is done where it is there.

    Args:
        checkpoint: Folder with the tuned weights.
        base_dir: The base's prepared weights.
        out: The new folder.
        dtype: Of the tuned weights.
    """
    if out.exists():
        return
    new = out.with_name(f".{out.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    for file in sorted(base_dir.iterdir()):
        is_kept = file.suffix in _KEPT_SUFFIXES and not file.name.endswith(".index.json")
        if file.is_file() and is_kept and file.name != "manifest.json":
            shutil.copyfile(file, new / file.name)
    for file in (*checkpoint.glob("*.safetensors"), *checkpoint.glob("*.safetensors.index.json")):
        try:
            os.link(file, new / file.name)
        except OSError:
            shutil.copyfile(file, new / file.name)
    config = json.loads((new / _CONFIG_NAME).read_text(encoding="utf-8"))
    config.pop("torch_dtype", None)
    text = json.dumps(config | {"dtype": dtype}, indent=2)
    (new / _CONFIG_NAME).write_text(text, encoding="utf-8")
    new.rename(out)


def weights_id(folder: Path) -> str:
    """Return the id of whole weights that were assembled."""
    return _id_of(_index(folder))


def keep_weights(blobs: Blobs, folder: Path) -> str:
    """Store whole weights; doing so twice is fine. The index comes last.

    Returns:
        Their id.

    Raises:
        DiskFull: There is no room.
    """
    index = _index(folder)
    key = blob_key_of(_id_of(index))
    if not blobs.exists(f"{key}/{INDEX_NAME}"):
        blobs.put_folder(key, folder, tuple(index))
        incoming = blobs.begin()
        incoming.write(_text(index))
        blobs.put(f"{key}/{INDEX_NAME}", incoming)
    return _id_of(index)


def fetch_weights(blobs: Blobs, weights: str, home: Path) -> PreparedModel:
    """Return this machine's copy of whole weights; milliseconds where it is there.

    Args:
        blobs: Where they are stored.
        weights: Their id.
        home: Folder of the copies.

    Raises:
        WeightsCorrupt: What is stored is something else than the id says.
        NotFound: They are not stored.
        DiskFull: There is no room.
    """
    home.mkdir(parents=True, exist_ok=True)
    final = home / check_name(weights)
    with (home / f".{weights}.lock").open("a") as lock:
        # One process fetches, the others wait; the kernel lets go of a dead one's lock.
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            manifest = read_manifest(final)
            if manifest is not None:
                verify_folder(final, manifest)
                return PreparedModel(final, manifest)
        except WeightsCorrupt:
            # The copy may have been damaged; what is stored may still be good.
            pass
        shutil.rmtree(final, ignore_errors=True)
        return _fetch(blobs, weights, final)


def _fetch(blobs: Blobs, weights: str, final: Path) -> PreparedModel:
    key = blob_key_of(weights)
    text = b"".join(blobs.read(f"{key}/{INDEX_NAME}"))
    if hashlib.sha256(text).hexdigest() != weights:
        raise WeightsCorrupt(f"the stored index of weights {weights[:_NAME_LENGTH]} is damaged")
    index: dict[str, str] = json.loads(text)
    new = final.with_name(f".{final.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    try:
        for name in index:
            blobs.download(f"{key}/{check_name(name)}", new / name)
        manifest = Manifest(
            model_id=engine_name_of(weights),
            source=(key,),
            dtype=str(json.loads((new / _CONFIG_NAME).read_text(encoding="utf-8")).get("dtype")),
            source_sha256=index,
            files=record_files(new),
        )
        differing = [n for n, file in manifest.files.items() if file.sha256 != index.get(n)]
        if differing:
            raise WeightsCorrupt(
                f"{differing[0]} of the stored weights {weights[:_NAME_LENGTH]} is damaged"
            )
        write_manifest(new, manifest)
        new.rename(final)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return PreparedModel(final, manifest)


def _index(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.iterdir() if path.is_file())
    return {path.name: hash_file(path).sha256 for path in files}


def _id_of(index: Mapping[str, str]) -> str:
    return hashlib.sha256(_text(index)).hexdigest()


def _text(index: Mapping[str, str]) -> bytes:
    return json.dumps(dict(index), sort_keys=True).encode()
