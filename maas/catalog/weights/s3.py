"""``s3://bucket/prefix``: any S3 service, through s3fs (extra ``s3``)."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from maas.catalog.weights.files import CHUNK_BYTES, Report, SourceAccess, SourceFile
from maas.core.errors import ConfigError, SourceUnreachable


class S3Source:
    """A prefix of a bucket, or one object. Credentials come from where AWS's tools look."""

    def __init__(self, location: str, access: SourceAccess) -> None:
        self._location = location.rstrip("/")
        options: dict[str, Any] = {"skip_instance_cache": True, "use_listings_cache": False}
        if access.s3_endpoint:
            options["endpoint_url"] = access.s3_endpoint
        try:
            # By name: an extra that most machines lack, and it has no types.
            self._files: Any = import_module("s3fs").S3FileSystem(**options)
        except ImportError as error:
            raise ConfigError("s3:// needs s3fs; run: pip install 'maas[s3]'") from error

    def list_files(self, report: Report) -> list[SourceFile]:  # noqa: ARG002 - at once
        """Return the objects under the prefix."""
        try:
            found: dict[str, Any] = self._files.find(self._location, detail=True)
        except Exception as error:
            raise SourceUnreachable(f"s3://{self._location}: {error}") from error
        if not found:
            raise SourceUnreachable(f"s3://{self._location}: nothing there")
        root = self._location if self._location not in found else str(Path(self._location).parent)
        return [
            SourceFile(path.removeprefix(f"{root}/"), int(facts["size"]))
            for path, facts in sorted(found.items())
            if not path.endswith("/")
        ]

    def fetch(self, file: SourceFile, part: Path, on_bytes: Callable[[int], object]) -> None:
        """Read an object in ranges from where ``part`` ends."""
        path = self._location
        if not path.endswith(f"/{file.name}"):
            path = f"{path}/{file.name}"
        step = 8 * CHUNK_BYTES
        with part.open("ab") as target:
            while (start := target.tell()) < file.size_bytes:
                end = min(start + step, file.size_bytes)
                try:
                    chunk: bytes = self._files.cat_file(path, start=start, end=end)
                except Exception as error:
                    raise SourceUnreachable(f"s3://{path}: {error}") from error
                if not chunk:
                    raise SourceUnreachable(f"s3://{path}: ends early")
                target.write(chunk)
                on_bytes(target.tell())
