"""``hf://org/name@revision``: a model hub that speaks Hugging Face's HTTP protocol.

``GET /api/models/{repo}/revision/{rev}`` pins the revision to a commit,
``GET /api/models/{repo}/tree/{commit}?recursive=true`` lists files with their hashes (the
sha256 of large files, the git blob id of small ones), and
``GET /{repo}/resolve/{commit}/{path}`` has the bytes, often behind a redirect.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote

from maas.catalog.weights.files import Report, SourceAccess, SourceFile
from maas.catalog.weights.http import download, get_json
from maas.core.errors import SourceUnreachable


def _source_file(entry: dict[str, Any]) -> SourceFile:
    large = cast("dict[str, Any]", entry.get("lfs") or {})
    return SourceFile(
        name=str(entry["path"]),
        size_bytes=int(large.get("size", entry["size"])),
        sha256=large.get("oid"),
        git_sha1=None if large else entry.get("oid"),
    )


class HubSource:
    """One revision of one repository."""

    def __init__(
        self, repo: str, revision: str, access: SourceAccess, *, pause_s: float = 1.0
    ) -> None:
        self._repo = quote(repo)
        self._revision = revision
        self._endpoint = access.hf_endpoint.rstrip("/")
        self._pause_s = pause_s
        self._commit = ""
        token = access.hf_token
        self._secret = {"Authorization": f"Bearer {token.get_secret_value()}"} if token else {}

    def list_files(self, report: Report) -> list[SourceFile]:  # noqa: ARG002 - at once
        """Pin the revision and return its files."""
        base = f"{self._endpoint}/api/models/{self._repo}"
        try:
            revision = quote(self._revision, safe="")
            model, _ = get_json(f"{base}/revision/{revision}", secret_headers=self._secret)
            self._commit = str(model["sha"])
            url: str | None = f"{base}/tree/{quote(self._commit)}?recursive=true"
            files: list[SourceFile] = []
            while url:
                page, following = get_json(url, secret_headers=self._secret)
                files += [_source_file(entry) for entry in page if entry["type"] == "file"]
                # Only this host's pages: the token goes with them.
                url = following if following and following.startswith(self._endpoint) else None
        except (KeyError, TypeError, ValueError) as error:
            raise SourceUnreachable(f"{base}: not an answer of a model hub: {error!r}") from error
        return files

    @property
    def commit(self) -> str:
        """Commit the revision stood for when it was listed."""
        return self._commit

    def fetch(self, file: SourceFile, part: Path, on_bytes: Callable[[int], object]) -> None:
        """Download a file of the pinned commit."""
        path = f"{self._repo}/resolve/{self._commit}/{quote(file.name)}"
        download(
            f"{self._endpoint}/{path}",
            part,
            size_bytes=file.size_bytes,
            secret_headers=self._secret,
            on_bytes=on_bytes,
            pause_s=self._pause_s,
        )
