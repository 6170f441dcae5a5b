"""A model hub on loopback that speaks the hub's HTTP protocol, and misbehaves when told to."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "c0ffee" + "0" * 34
LARGE_BYTES = 1000


class FakeHub:
    """One repository, and how the next answers go wrong.

    Attributes:
        drop_after: Bytes after which the next bodies end, one entry an answer.
        ignore_range: Answer 200 with everything to a Range request.
        cdn: Base URL that large files redirect to.
        requests: (path, headers) of every request.
    """

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.drop_after: list[int] = []
        self.ignore_range = False
        self.token: str | None = None
        self.page_size = 1000
        self.cdn: str | None = None
        self.wrong_hash: str | None = None
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.url = ""

    def ranges(self) -> list[str]:
        return [headers["Range"] for _, headers in self.requests if "Range" in headers]

    def tree(self) -> list[dict[str, Any]]:
        entries: list[dict[str, Any]] = [{"type": "directory", "path": "sub", "oid": "0"}]
        for name, content in self.files.items():
            git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            entry: dict[str, Any] = {"type": "file", "path": name, "size": len(content), "oid": git}
            if len(content) > LARGE_BYTES:
                oid = "0" * 64 if name == self.wrong_hash else hashlib.sha256(content).hexdigest()
                entry["lfs"] = {"oid": oid, "size": len(content), "pointerSize": 134}
            entries.append(entry)
        return entries


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: FakeHub

    def log_message(self, format: str, *args: object) -> None:
        """Stay silent."""

    def _send(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.hub.drop_after and status in {200, 206} and "json" not in str(headers):
            self.wfile.write(body[: self.hub.drop_after.pop(0)])
            self.wfile.flush()
            self.close_connection = True
            return
        self.wfile.write(body)

    def _send_file(self, content: bytes) -> None:
        wanted = self.headers.get("Range")
        if wanted is None or self.hub.ignore_range:
            self._send(200, content, ETag='"x"')
            return
        start = int(wanted.removeprefix("bytes=").rstrip("-"))
        if start >= len(content):
            self._send(416, b"")
            return
        self._send(206, content[start:], Content_Range=f"bytes {start}-/{len(content)}")

    def do_GET(self) -> None:
        hub, url = self.hub, urlsplit(self.path)
        path = unquote(url.path)
        hub.requests.append((path, dict(self.headers)))
        if path.startswith("/cdn/"):
            self._send_file(hub.files[path.removeprefix("/cdn/")])
        elif hub.token and self.headers.get("Authorization") != f"Bearer {hub.token}":
            self._send(401, b"{}")
        elif path == "/api/models/org/tiny/revision/main":
            self._json({"id": "org/tiny", "sha": COMMIT})
        elif path == f"/api/models/org/tiny/tree/{COMMIT}":
            start = int(url.query.partition("cursor=")[2] or 0)
            entries = hub.tree()
            following = start + hub.page_size
            link = {}
            if following < len(entries):
                page = f"{hub.url}{path}?recursive=true&cursor={following}"
                link = {"Link": f'<{page}>; rel="next"'}
            self._json(entries[start:following], **link)
        elif path.startswith(prefix := f"/org/tiny/resolve/{COMMIT}/"):
            name = path.removeprefix(prefix)
            if hub.cdn and len(hub.files[name]) > LARGE_BYTES:
                self._send(302, b"", Location=f"{hub.cdn}/cdn/{name}", X_Linked_ETag='"x"')
            else:
                self._send_file(hub.files[name])
        else:
            self._send(404, b"{}")

    def _json(self, value: object, **headers: str) -> None:
        self._send(200, json.dumps(value).encode(), Content_Type="application/json", **headers)


@contextmanager
def serve(hub: FakeHub) -> Iterator[str]:
    """Serve the hub on a free port of loopback and yield its URL."""
    handler = type("Handler", (_Handler,), {"hub": hub})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        hub.url = f"http://127.0.0.1:{server.server_address[1]}"
        try:
            yield hub.url
        finally:
            server.shutdown()
            thread.join()
