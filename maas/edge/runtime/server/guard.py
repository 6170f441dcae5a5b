"""Web pages in a browser of this machine are not who the server is for.

A page can send requests to it (a form, a fetch with a plain content type), and, by a name of its
own that it points here, read the answers. Browsers say where a request comes from and which name
it was sent to; programs have no reason to lie about either.
"""

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import urlsplit

from aiohttp import web

from maas.core.errors import ConfigError
from maas.edge.runtime.server.errors import Handler
from maas.protocol.errors import encode_error

_JSON = "application/json"
_ALLOW_ORIGIN = "Access-Control-Allow-Origin"
_EXPOSED = "x-maas-served-by, x-maas-cost, x-request-id, retry-after"
_PREFLIGHT_AGE_S = "600"


@dataclass(frozen=True)
class Guard:
    """Refuses what comes from web pages, but those that are allowed.

    Attributes:
        host: The address the server listens on, as it was given.
        allowed_origins: Of pages that may ask.
    """

    host: str
    allowed_origins: frozenset[str] = frozenset()

    def add_to(self, app: web.Application) -> None:
        """Have an application ask here first."""
        app.middlewares.insert(0, self.middleware)
        app.on_response_prepare.append(self._say_allowed)

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Refuse a request, or pass it on."""
        host, origin = request.headers.get("Host"), request.headers.get("Origin")
        if is_loopback(self.host) and host is not None and not self._is_ours(host):
            return _refused(
                403, f"Host {host!r} is not this server: use localhost, or the --host it was given"
            )
        is_allowed = origin in self.allowed_origins
        if origin is not None and not is_allowed and _netloc(origin) != (host or "").lower():
            return _refused(
                403, f"pages of {origin!r} may not ask here: start with --allow-origin {origin}"
            )
        if is_allowed and request.method == "OPTIONS":
            return _preflight(request)
        if request.method == "POST" and request.headers.get("Content-Type", "") == "":
            return _refused(415, f"the body has no content type: send Content-Type: {_JSON}")
        if request.method == "POST" and request.content_type != _JSON:
            return _refused(
                415,
                f"the body is {request.content_type}: send Content-Type: {_JSON} "
                f"(curl: -H 'Content-Type: {_JSON}', which -d does not send by itself)",
            )
        return await handler(request)

    def _is_ours(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname
        except ValueError:
            return False
        return name is not None and (is_loopback(name) or name == self.host.lower())

    async def _say_allowed(self, request: web.Request, response: web.StreamResponse) -> None:
        """Tell the browser that an allowed page may read the answer."""
        if not self.allowed_origins:
            return
        response.headers["Vary"] = "Origin"
        origin = request.headers.get("Origin")
        if origin in self.allowed_origins:
            response.headers[_ALLOW_ORIGIN] = str(origin)
            response.headers["Access-Control-Expose-Headers"] = _EXPOSED


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def allowed_origins(urls: Iterable[str]) -> frozenset[str]:
    """Return origins as browsers write them.

    Raises:
        ConfigError: One is none.
    """
    return frozenset(map(_origin, urls))


def _origin(url: str) -> str:
    origin = url.strip().rstrip("/").lower()
    netloc = _netloc(origin)
    if not netloc or "@" in netloc or origin not in {f"http://{netloc}", f"https://{netloc}"}:
        raise ConfigError(f"--allow-origin {url!r}: want a page's origin: http://localhost:3000")
    return origin


def _netloc(origin: str) -> str:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


def _preflight(request: web.Request) -> web.Response:
    asked = request.headers.get("Access-Control-Request-Headers", "content-type")
    headers = {
        "Access-Control-Allow-Methods": "GET, POST, DELETE",
        "Access-Control-Allow-Headers": asked,
        "Access-Control-Max-Age": _PREFLIGHT_AGE_S,
    }
    return web.Response(status=204, headers=headers)


def _refused(status: int, message: str) -> web.Response:
    code = "forbidden_origin" if status == 403 else "unsupported_media_type"
    body = encode_error(message, kind="invalid_request_error", code=code)
    return web.Response(body=body, status=status, content_type=_JSON)
