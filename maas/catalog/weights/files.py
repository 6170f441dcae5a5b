"""What every weight source speaks: files with names, sizes and hashes, and progress."""

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol

from pydantic import SecretStr

from maas.core.errors import WeightsForbidden
from maas.core.settings import Settings

CHUNK_BYTES = 2**20
PART_SUFFIX = ".part"
_DRIVE = re.compile(r"^[A-Za-z]:")


@dataclass(frozen=True)
class Progress:
    """How far a preparation is.

    Attributes:
        done_bytes: Bytes done.
        total_bytes: Bytes in all; none where nobody can tell.
        what: What is being done, in words.
    """

    done_bytes: int
    total_bytes: int | None
    what: str

    def __str__(self) -> str:
        """Return it as one line."""
        done = f"{self.done_bytes / 1e6:.0f}"
        if self.total_bytes is None:
            return self.what if not self.done_bytes else f"{self.what}: {done} MB"
        return f"{self.what}: {done} of {self.total_bytes / 1e6:.0f} MB"


Report = Callable[[Progress], object]


@dataclass(frozen=True)
class SourceFile:
    """One file a source offers.

    Attributes:
        name: Path inside the model's folder, with slashes.
        sha256: Its hash where the source publishes one.
        git_sha1: Its git blob id where the source publishes that instead.
    """

    name: str
    size_bytes: int
    sha256: str | None = None
    git_sha1: str | None = None


@dataclass(frozen=True)
class SourceAccess:
    """What an operator sets to reach sources.

    Attributes:
        hf_token: Sent to ``hf_endpoint`` only, never to where it redirects.
        s3_endpoint: Another S3 service than AWS's.
    """

    hf_token: SecretStr | None = None
    hf_endpoint: str = "https://huggingface.co"
    s3_endpoint: str | None = None


def source_access(settings: Settings) -> SourceAccess:
    """Return what the settings say of sources."""
    return SourceAccess(
        hf_token=settings.hf_token,
        hf_endpoint=settings.hf_endpoint,
        s3_endpoint=settings.s3_endpoint,
    )


@dataclass(frozen=True)
class Hashes:
    """The two hashes a source may publish, hexadecimal.

    Attributes:
        git_sha1: Id git gives a blob of these bytes.
    """

    sha256: str
    git_sha1: str


class Source(Protocol):
    """One place weights come from."""

    def list_files(self, report: Report) -> list[SourceFile]:
        """Return the files there are.

        Raises:
            SourceUnreachable: It did not answer, or has no such thing.
        """
        ...

    def fetch(self, file: SourceFile, part: Path, on_bytes: Callable[[int], object]) -> None:
        """Write a file's bytes to ``part``, going on from where it ends.

        Args:
            file: One of ``list_files``.
            part: Where to write; what is there already is the file's beginning.
            on_bytes: Told the number of bytes written, again and again.

        Raises:
            SourceUnreachable: It did not answer, or stopped half way too often.
        """
        ...


def hash_file(path: Path) -> Hashes:
    """Read a file once and return its hashes."""
    sha256 = hashlib.sha256()
    git = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK_BYTES):
            sha256.update(chunk)
            git.update(chunk)
    return Hashes(sha256.hexdigest(), git.hexdigest())


def check_name(name: str) -> str:
    """Return a file name that stays inside its folder.

    Raises:
        WeightsForbidden: It is absolute, climbs, or holds a backslash or control character.
    """
    path = PurePosixPath(name)
    climbs = path.is_absolute() or ".." in path.parts or _DRIVE.match(name)
    if not path.parts or climbs or "\\" in name or not name.isprintable():
        raise WeightsForbidden(f"the source offers a file named {name!r}, outside its own folder")
    return str(path)
