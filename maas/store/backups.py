"""Copies of a SQLite store as it was before an upgrade; a PostgreSQL server has its own tools."""

import contextlib
import errno
import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

from maas.core.errors import DiskFull, HostError

_DRAFT = ".draft"


class Backups:
    """The folder of a SQLite store's copies.

    Args:
        folder: Made, readable by its owner only, at the first copy.
        keep: How many copies stay; the oldest go first.
    """

    def __init__(self, folder: Path, *, keep: int) -> None:
        self._folder = folder
        self._keep = keep

    def list(self) -> list[Path]:
        """Return the copies, oldest first."""
        copies = self._folder.glob("*.db")
        return sorted(copies, key=lambda path: (path.stat().st_mtime_ns, path.name))

    def make(self, database_file: Path, version: str) -> Path:
        """Copy the store; nobody may write to it meanwhile.

        Args:
            database_file: The store.
            version: Its revision; part of the copy's name.

        Raises:
            DiskFull: No room for the copy; nothing is left of it.
            HostError: It cannot be made for another reason.
        """
        now = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
        copy = self._folder / f"{version}-{now}.db"
        draft = copy.with_name(copy.name + _DRAFT)
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            for left in self._folder.glob(f"*{_DRAFT}"):
                left.unlink()
            draft.touch(mode=0o600)
            _copy(database_file, draft)
            draft.replace(copy)
        except (OSError, sqlite3.Error) as error:
            with contextlib.suppress(OSError):
                draft.unlink()
            is_full = "is full" in str(error) or getattr(error, "errno", None) == errno.ENOSPC
            kind = DiskFull if is_full else HostError
            raise kind(
                f"the store cannot be copied to {copy} before its upgrade: {error}; "
                "nothing was changed"
            ) from error
        for old in self.list()[: -self._keep]:
            old.unlink()
        return copy


def _copy(source: Path, target: Path) -> None:
    with closing(sqlite3.connect(source)) as reader, closing(sqlite3.connect(target)) as writer:
        reader.backup(writer)
