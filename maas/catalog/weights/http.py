"""HTTP as weight sources need it: redirects that keep secrets home, and resumed downloads.

The standard library's client: this runs a few times in a model's life, from threads and
commands, and must not bring an event loop along.
"""

import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from http.client import HTTPException, HTTPMessage, HTTPResponse
from pathlib import Path
from typing import IO, Any

from maas.catalog.weights.files import CHUNK_BYTES
from maas.core.errors import SourceUnreachable

MAX_REDIRECTS = 8
MAX_STALLS = 5
_PARTIAL = 206
_RANGE_NOT_SATISFIABLE = 416
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_REFUSED = {
    401: "it wants a token; set MAAS_HF_TOKEN",
    403: "the token has no access; accept the model's terms on its page",
    404: "no such model, revision or file",
}


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: HTTPMessage,
        newurl: str,
    ) -> None:
        """Follow nothing: ``open_url`` does, and looks where to."""


def _next_url(url: str, location: str | None) -> str:
    target = urllib.parse.urljoin(url, location or "")
    before, after = urllib.parse.urlsplit(url).scheme, urllib.parse.urlsplit(target).scheme
    if not location or after not in {"http", "https"} or (before, after) == ("https", "http"):
        raise SourceUnreachable(f"{url}: redirects to {location!r}, which is not followed")
    return target


def open_url(
    url: str, *, headers: Mapping[str, str], secret_headers: Mapping[str, str], timeout_s: float
) -> HTTPResponse:
    """Open a URL, following redirects.

    Args:
        url: http or https.
        headers: Sent everywhere.
        secret_headers: Sent to the URL's own host only.
        timeout_s: Longest silence.

    Raises:
        urllib.error.HTTPError: The server said no.
        SourceUnreachable: It redirects to nowhere good.
    """
    home = urllib.parse.urlsplit(url).netloc
    for _ in range(MAX_REDIRECTS):
        opener = urllib.request.build_opener(_NoRedirect)
        at_home = urllib.parse.urlsplit(url).netloc == home
        sent = {"User-Agent": "maas", **headers, **(secret_headers if at_home else {})}
        opener.addheaders = list(sent.items())
        try:
            return opener.open(url, timeout=timeout_s)
        except urllib.error.HTTPError as error:
            if error.code not in _REDIRECTS:
                raise
            url = _next_url(url, error.headers.get("Location"))
            error.close()
    raise SourceUnreachable(f"{url}: more than {MAX_REDIRECTS} redirects")


def _unreachable(url: str, error: Exception) -> SourceUnreachable:
    if isinstance(error, urllib.error.HTTPError):
        why = _REFUSED.get(error.code, error.reason)
        error.close()
        return SourceUnreachable(f"{url}: HTTP {error.code}: {why}")
    reason = getattr(error, "reason", error)
    return SourceUnreachable(f"{url}: {reason}; check the network, or use another source")


def get_json(
    url: str, *, secret_headers: Mapping[str, str], timeout_s: float = 30.0
) -> tuple[Any, str | None]:
    """Return a JSON answer and the URL of its next page, if any.

    Raises:
        SourceUnreachable: No answer, or not JSON.
    """
    try:
        with open_url(
            url, headers={}, secret_headers=secret_headers, timeout_s=timeout_s
        ) as answer:
            link = answer.headers.get("Link") or ""
            next_url = link.partition(">")[0].removeprefix("<") if 'rel="next"' in link else None
            return json.loads(answer.read()), next_url
    except (OSError, HTTPException, ValueError) as error:
        raise _unreachable(url, error) from error


def _append(answer: HTTPResponse, part: Path, on_bytes: Callable[[int], object]) -> None:
    resumed = answer.status == _PARTIAL
    with part.open("ab" if resumed else "wb") as target:
        while chunk := answer.read(CHUNK_BYTES):
            target.write(chunk)
            on_bytes(target.tell())


def download(  # noqa: PLR0913 - all but two are keywords
    url: str,
    part: Path,
    *,
    size_bytes: int,
    secret_headers: Mapping[str, str],
    on_bytes: Callable[[int], object],
    timeout_s: float = 60.0,
    pause_s: float = 1.0,
) -> None:
    """Download to ``part``, going on where it ends, over broken connections.

    A try that brought new bytes resets the count of failures: a slow line gets there.

    Raises:
        SourceUnreachable: ``MAX_STALLS`` tries in a row brought nothing new.
    """
    stalls = 0
    while (have := part.stat().st_size if part.exists() else 0) < size_bytes or not part.exists():
        failure: Exception = EOFError("it ended early")
        headers = {"Range": f"bytes={have}-"} if have else {}
        try:
            with open_url(
                url, headers=headers, secret_headers=secret_headers, timeout_s=timeout_s
            ) as answer:
                _append(answer, part, on_bytes)
        except urllib.error.HTTPError as error:
            if error.code == _RANGE_NOT_SATISFIABLE:
                part.unlink()
            elif error.code in _REFUSED:
                raise _unreachable(url, error) from error
            failure = error
        except (OSError, HTTPException) as error:
            failure = error
        now = part.stat().st_size if part.exists() else 0
        if now >= size_bytes and part.exists():
            return
        stalls = 0 if now > have else stalls + 1
        if stalls >= MAX_STALLS:
            raise _unreachable(url, failure) from failure
        if stalls:
            time.sleep(pause_s * 2 ** (stalls - 1))
