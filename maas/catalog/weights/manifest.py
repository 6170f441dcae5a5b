"""What a prepared folder must hold: sizes, times and hashes, in ``manifest.json`` beside it.

The manifest is written last, so a folder without one was never finished.
"""

import json
import os
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from maas.catalog.weights.files import hash_file
from maas.core.errors import WeightsCorrupt

MANIFEST_NAME = "manifest.json"
_HEADER_LENGTH_BYTES = 8
_MAX_HEADER_BYTES = 100 * 2**20


class FileRecord(BaseModel):
    """One file as it was when it was made."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    size_bytes: int
    mtime_ns: int
    sha256: str


class Manifest(BaseModel):
    """Everything in a prepared folder and where it came from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model_id: str
    source: tuple[str, ...]
    commit: str | None = None
    dtype: str
    source_sha256: dict[str, str]
    files: dict[str, FileRecord]


def record_files(folder: Path) -> dict[str, FileRecord]:
    """Hash every file of a folder and flush it to disk."""
    records: dict[str, FileRecord] = {}
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or path.name == MANIFEST_NAME:
            continue
        with path.open("rb") as stream:
            os.fsync(stream.fileno())
        status = path.stat()
        records[path.relative_to(folder).as_posix()] = FileRecord(
            size_bytes=status.st_size, mtime_ns=status.st_mtime_ns, sha256=hash_file(path).sha256
        )
    return records


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest whole or not at all."""
    new = folder / f".{MANIFEST_NAME}.new"
    with new.open("w", encoding="utf-8") as stream:
        stream.write(manifest.model_dump_json(indent=1))
        stream.flush()
        os.fsync(stream.fileno())
    new.replace(folder / MANIFEST_NAME)


def read_manifest(folder: Path) -> Manifest | None:
    """Return the manifest; none where the folder is missing or was never finished.

    Raises:
        WeightsCorrupt: It cannot be read.
    """
    path = folder / MANIFEST_NAME
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise WeightsCorrupt(f"{path}: damaged; {_mend(folder)}") from error


def pull_command(folder: Path) -> str:
    """Return the command that prepares a folder, which is named after model and variant."""
    model_id, _, variant = folder.name.partition("@")
    return f"maas model pull {model_id}" + (f" --quantization {variant}" if variant else "")


def _mend(folder: Path) -> str:
    return f"run: {pull_command(folder)} --again"


def _check_safetensors(path: Path, folder: Path) -> None:
    """Check that the header is whole and the tensors end where the file does."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(_HEADER_LENGTH_BYTES), "little")
        header = stream.read(length) if length <= min(size, _MAX_HEADER_BYTES) else b""
    try:
        tensors = json.loads(header)
        end = max((t["data_offsets"][1] for n, t in tensors.items() if n != "__metadata__"))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsCorrupt(f"{path}: broken safetensors header; {_mend(folder)}") from error
    if _HEADER_LENGTH_BYTES + length + end != size:
        raise WeightsCorrupt(f"{path}: tensors do not fill the file; {_mend(folder)}")


def verify_folder(folder: Path, manifest: Manifest, *, full: bool = False) -> None:
    """Check a folder against its manifest.

    Sizes, times and safetensors headers take milliseconds. A file whose time changed is
    hashed; with ``full`` all are.

    Raises:
        WeightsCorrupt: A file is missing or differs; the message names it and the mend.
    """
    for name, record in manifest.files.items():
        path = folder / name
        try:
            status = path.stat()
        except OSError as error:
            raise WeightsCorrupt(f"{path}: missing; {_mend(folder)}") from error
        if status.st_size != record.size_bytes:
            raise WeightsCorrupt(
                f"{path}: {status.st_size} bytes, {record.size_bytes} recorded; {_mend(folder)}"
            )
        if path.suffix == ".safetensors":
            _check_safetensors(path, folder)
        changed = full or status.st_mtime_ns != record.mtime_ns
        if changed and hash_file(path).sha256 != record.sha256:
            raise WeightsCorrupt(f"{path}: its sha256 differs from the recorded; {_mend(folder)}")
