"""``file://``: a folder or one file of this machine."""

import shutil
from collections.abc import Callable
from pathlib import Path

from maas.catalog.weights.files import CHUNK_BYTES, Report, SourceFile
from maas.core.errors import DiskFull, SourceUnreachable


class LocalSource:
    """A folder or one file. Links that lead out of the folder are not followed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._root = path if path.is_dir() else path.parent

    def list_files(self, report: Report) -> list[SourceFile]:  # noqa: ARG002 - at once
        """Return the files of the folder, or the one file."""
        if not self._path.exists():
            raise SourceUnreachable(f"file://{self._path}: no such file or folder")
        paths = sorted(self._path.rglob("*")) if self._path.is_dir() else [self._path]
        root = self._root.resolve()
        return [
            SourceFile(path.relative_to(self._root).as_posix(), path.stat().st_size)
            for path in paths
            if path.is_file() and path.resolve().is_relative_to(root)
        ]

    def fetch(self, file: SourceFile, part: Path, on_bytes: Callable[[int], object]) -> None:
        """Copy a file."""
        with (self._root / file.name).open("rb") as source, part.open("wb") as target:
            try:
                shutil.copyfileobj(source, target, CHUNK_BYTES)
            except OSError as error:
                raise DiskFull(f"{part}: {error.strerror}; make room") from error
        on_bytes(file.size_bytes)
