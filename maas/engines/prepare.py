"""Makes a model's weights ready for an engine: fetched, converted, recorded; once.

    weights_dir/
      <model id>/            what engines load; manifest.json says it is whole
      <model id>@<variant>/  the same of a variant that has a source of its own
      .<model id>.source/    what is being fetched; kept after a failure, to go on from
      .<model id>.new/       what is being made; thrown away after a failure
      .<model id>.lock       one process prepares, the others wait

Nothing here imports torch: a GGUF file is converted by ``maas.engines.convert`` in a process
of its own.
"""

import fcntl
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from maas.catalog.card import ModelCard
from maas.catalog.weights.fetch import Fetched, fetch_weights
from maas.catalog.weights.files import Progress, Report, SourceAccess, check_name
from maas.catalog.weights.manifest import (
    Manifest,
    pull_command,
    read_manifest,
    record_files,
    verify_folder,
    write_manifest,
)
from maas.core.errors import SourceUnreachable, WeightsCorrupt
from maas.core.host import check_disk
from maas.core.lifeline import LIFELINE_FLAG

_DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class PreparedModel:
    """Weights an engine can load.

    Attributes:
        model_dir: Folder of safetensors, config and tokenizer.
        manifest: What is in it and where it came from.
    """

    model_dir: Path
    manifest: Manifest


def folder_name(card: ModelCard, quantization: str | None = None) -> str:
    """Return the name of the folder that holds one form of a model's weights."""
    name = f"{card.id}@{quantization}" if card.has_own_source(quantization) else card.id
    return check_name(name)


def _ready(card: ModelCard, final: Path) -> PreparedModel | None:
    """Return the prepared model if the folder is whole and of this card's source.

    Raises:
        WeightsCorrupt: It was whole once and is not now.
    """
    manifest = read_manifest(final)
    if manifest is None or (manifest.source, manifest.dtype) != (card.source, card.dtype):
        return None
    verify_folder(final, manifest)
    return PreparedModel(final, manifest)


@contextmanager
def _only_one(lock: Path, card: ModelCard, report: Report) -> Iterator[None]:
    """Wait until no other process prepares this model; the kernel lets go of a dead one's lock."""
    with lock.open("a") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report(Progress(0, None, f"waiting for another process that prepares {card.id}"))
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _convert(gguf: Path, out: Path, card: ModelCard) -> None:
    """Convert in a process that ends when this one does."""
    command = [sys.executable, "-m", "maas.engines.convert"]
    arguments = [str(gguf), str(out), card.dtype, LIFELINE_FLAG]
    child = subprocess.Popen(  # noqa: S603 - our own module
        [*command, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    with child:
        said = child.stderr.read() if child.stderr else ""
        code = child.wait()
    if code:
        last = (said.strip().splitlines() or ["it said nothing"])[-1]
        raise WeightsCorrupt(f"{gguf.name} of {card.id} could not be converted: {last}")


def _make(card: ModelCard, source: Path, fetched: Fetched, new: Path, report: Report) -> None:
    """Turn what was fetched into what engines load."""
    ggufs = [name for name in _names(source) if name.endswith(".gguf")]
    if not any(name.endswith(".safetensors") for name in _names(source)) and ggufs:
        if len(ggufs) > 1:
            raise SourceUnreachable(
                f"model {card.id}: its source holds {len(ggufs)} GGUF files; name one in the card"
            )
        check_disk(new, need_bytes=card.parameters * _DTYPE_BYTES[card.dtype])
        report(Progress(0, None, f"converting {ggufs[0]} to {card.dtype}"))
        _convert(source / ggufs[0], new, card)
    else:
        for name in fetched.sha256:
            (new / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).replace(new / name)
    if card.chat_template not in {None, "tokenizer"}:
        (new / "chat_template.jinja").write_text(str(card.chat_template), encoding="utf-8")


def _names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.is_file()]


def prepare_model(  # noqa: PLR0913 - all but one are keywords
    card: ModelCard,
    *,
    weights_dir: Path,
    progress: Report,
    quantization: str | None = None,
    allow_remote_code: bool = False,
    allow_pickle: bool = False,
    access: SourceAccess | None = None,
    again: bool = False,
) -> PreparedModel:
    """Fetch and convert a model; milliseconds when that is done.

    Args:
        card: The model.
        weights_dir: Folder of prepared models.
        progress: Told how far it is.
        quantization: The form of the weights; one without a source of its own is made by the
            engine from the card's.
        allow_remote_code: The operator lets cards that ask for it run code from the weights.
        allow_pickle: The operator lets cards that ask for it load pickles.
        access: Tokens and endpoints of sources.
        again: Throw away what is there first.

    Raises:
        WeightsError: They cannot be had, are damaged, or must not be used.
        DiskFull: No room for them.
    """
    name, card = folder_name(card, quantization), card.form(quantization)
    final = weights_dir / name
    if not again and (prepared := _ready(card, final)):
        return prepared
    weights_dir.mkdir(parents=True, exist_ok=True)
    source, new = weights_dir / f".{name}.source", weights_dir / f".{name}.new"
    with _only_one(weights_dir / f".{name}.lock", card, progress):
        if not again and (prepared := _ready(card, final)):
            return prepared
        fetched = fetch_weights(
            card,
            source,
            progress,
            access=access or SourceAccess(),
            allow_remote_code=allow_remote_code,
            allow_pickle=allow_pickle,
        )
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir()
        _make(card, source, fetched, new, progress)
        manifest = Manifest(
            model_id=card.id,
            source=card.source,
            commit=fetched.commit,
            dtype=card.dtype,
            source_sha256=fetched.sha256,
            files=record_files(new),
        )
        write_manifest(new, manifest)
        verify_folder(new, manifest)
        shutil.rmtree(final, ignore_errors=True)
        new.rename(final)
        shutil.rmtree(source)
    return PreparedModel(final, manifest)


def verify_model(
    card: ModelCard, *, weights_dir: Path, quantization: str | None = None, full: bool = False
) -> Manifest:
    """Check prepared weights against what was recorded of them.

    Args:
        card: The model.
        weights_dir: Folder of prepared models.
        quantization: The form of the weights.
        full: Hash every byte instead of what changed.

    Raises:
        WeightsCorrupt: They are missing or differ; the message names the file and the mend.
    """
    folder = weights_dir / folder_name(card, quantization)
    manifest = read_manifest(folder)
    if manifest is None:
        raise WeightsCorrupt(f"{folder}: not prepared; run: {pull_command(folder)}")
    verify_folder(folder, manifest, full=full)
    return manifest
