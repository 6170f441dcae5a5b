"""Fetches a card's weights into a folder: resumed, hashed, checked for room first."""

import json
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from maas.catalog.card import ModelCard
from maas.catalog.weights.files import (
    CHUNK_BYTES,
    PART_SUFFIX,
    Progress,
    Report,
    Source,
    SourceAccess,
    SourceFile,
    hash_file,
)
from maas.catalog.weights.hub import HubSource
from maas.catalog.weights.local import LocalSource
from maas.catalog.weights.policy import check_config, select_files
from maas.catalog.weights.s3 import S3Source
from maas.catalog.weights.wheel import WheelSource
from maas.core.errors import ConfigError, WeightsCorrupt
from maas.core.host import check_disk

_REPO = re.compile(r"^[\w.-]+/[\w.-]+$")
_NUMBERED = re.compile(r"\.part\d+$")
_RECORD = ".fetched.json"
_ORIGIN = ".source.json"


@dataclass(frozen=True)
class Fetched:
    """What came: hashes by name, and the commit a revision stood for."""

    sha256: dict[str, str]
    commit: str | None


def open_source(uri: str, *, revision: str | None, cache_dir: Path, access: SourceAccess) -> Source:
    """Return the source a URI names.

    Raises:
        ConfigError: No such scheme, or not of its form.
    """
    scheme, separator, rest = uri.partition("://")
    if separator and scheme == "hf":
        repo, _, named = rest.partition("@")
        if not _REPO.match(repo):
            raise ConfigError(f"{uri}: want hf://org/name@revision")
        return HubSource(repo, named or revision or "main", access)
    if separator and scheme == "file":
        return LocalSource(Path(unquote(rest)))
    if separator and scheme == "s3":
        return S3Source(rest, access)
    if separator and scheme == "wheel":
        return WheelSource(rest, cache_dir)
    raise ConfigError(f"{uri}: want hf://, file://, s3:// or wheel://")


def _check_hash(file: SourceFile, path: Path, wanted: str | None) -> str:
    """Return the sha256 of a file that is what was published.

    Raises:
        WeightsCorrupt: It is not; the file is gone, so that another try starts afresh.
    """
    hashes = hash_file(path)
    pairs = [
        (wanted, hashes.sha256),
        (file.sha256, hashes.sha256),
        (file.git_sha1, hashes.git_sha1),
    ]
    for published, found in pairs:
        if published is not None and published != found:
            path.unlink()
            raise WeightsCorrupt(
                f"{file.name}: came with hash {found}, {published} is published; "
                "the copy was thrown away; try again, or check the source"
            )
    return hashes.sha256


def _read_record(folder: Path) -> dict[str, str]:
    try:
        return json.loads((folder / _RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _fetch_one(
    source: Source, file: SourceFile, target: Path, *, wanted: str | None, on_bytes: Report
) -> str:
    part = target.with_name(target.name + PART_SUFFIX)
    target.parent.mkdir(parents=True, exist_ok=True)
    if part.exists() and part.stat().st_size > file.size_bytes:
        part.unlink()
    tell: Callable[[int], object] = lambda done: on_bytes(  # noqa: E731 - one line of wiring
        Progress(done, file.size_bytes, f"fetching {file.name}")
    )
    source.fetch(file, part, tell)
    digest = _check_hash(file, part, wanted)
    part.replace(target)
    return digest


def _fetch_all(
    source: Source, files: Sequence[SourceFile], folder: Path, card: ModelCard, report: Report
) -> dict[str, str]:
    """Fetch what is not there yet; sizes of the whole in every report."""
    total = sum(file.size_bytes for file in files)
    record = _read_record(folder)
    before = 0
    for file in files:
        target = folder / file.name
        if not (
            target.exists()
            and target.stat().st_size == file.size_bytes
            and file.name in record
            and file.sha256 in {None, record[file.name]}
        ):
            base = before

            def tell(progress: Progress, base: int = base) -> None:
                report(Progress(base + progress.done_bytes, total, progress.what))

            record[file.name] = _fetch_one(
                source, file, target, wanted=card.sha256.get(file.name), on_bytes=tell
            )
            (folder / _RECORD).write_text(json.dumps(record), encoding="utf-8")
        before += file.size_bytes
    return {file.name: record[file.name] for file in files}


def _join(names: Sequence[str], folder: Path, card: ModelCard) -> str:
    """Put the parts of one file together, in the card's order.

    Raises:
        WeightsCorrupt: The whole is not what the card says.
    """
    name = _NUMBERED.sub("", names[0])
    with (folder / f"{name}.joined").open("wb") as whole:
        for part in names:
            with (folder / part).open("rb") as stream:
                shutil.copyfileobj(stream, whole, CHUNK_BYTES)
    size = (folder / f"{name}.joined").stat().st_size
    _check_hash(SourceFile(name, size), folder / f"{name}.joined", card.sha256.get(name))
    (folder / f"{name}.joined").replace(folder / name)
    for part in names:
        (folder / part).unlink()
    return name


def _start_folder(card: ModelCard, folder: Path) -> None:
    """Make the folder; what another source left there is not this one's beginning."""
    origin = json.dumps([*card.source, card.revision])
    path = folder / _ORIGIN
    if path.exists() and path.read_text(encoding="utf-8") != origin:
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(origin, encoding="utf-8")


def fetch_weights(
    card: ModelCard,
    folder: Path,
    report: Report,
    *,
    access: SourceAccess,
    allow_remote_code: bool = False,
    allow_pickle: bool = False,
) -> Fetched:
    """Fetch a card's weights into ``folder``; called again it goes on where it stopped.

    Raises:
        SourceUnreachable: The source did not answer.
        WeightsCorrupt: What came is not what was published.
        WeightsForbidden: Pickles or code, and nobody allowed them.
        DiskFull: No room.
    """
    _start_folder(card, folder)
    hashes: dict[str, str] = {}
    commit: str | None = None
    for uri in card.source:
        source = open_source(
            uri, revision=card.revision, cache_dir=folder / ".wheels", access=access
        )
        files = select_files(
            card,
            source.list_files(report),
            allow_remote_code=allow_remote_code,
            allow_pickle=allow_pickle,
        )
        check_disk(folder, need_bytes=sum(f.size_bytes for f in files) * len(card.source))
        # Small files first: a config that asks for code is refused before gigabytes come.
        files.sort(key=lambda file: (_is_large(file.name), file.name))
        small = [file for file in files if not _is_large(file.name)]
        _fetch_all(source, small, folder, card, report)
        check_config(card, folder, allow_remote_code=allow_remote_code)
        hashes |= _fetch_all(source, files, folder, card, report)
        commit = getattr(source, "commit", None) or commit
    if len(card.source) > 1:
        name = _join(list(hashes), folder, card)
        hashes[name] = hash_file(folder / name).sha256
    return Fetched(hashes, commit)


def _is_large(name: str) -> bool:
    return PurePosixPath(name).suffix not in {".json", ".txt", ".jinja", ".py"}
