"""A client of the gateway, for commands that act as a user: JSON both ways, files as a form."""

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import aiohttp
import typer

from maas.bootstrap import resolve_settings
from maas.bootstrap.keys import ADMIN_KEY_FILE
from maas.core.errors import (
    AuthenticationFailed,
    ConfigError,
    Conflict,
    EngineError,
    InvalidRequest,
    LimitExceeded,
    MaasError,
    NotFound,
    PermissionDenied,
    Unavailable,
)
from maas.core.settings import Settings
from maas.edge.runtime.shelf.sources import HttpSource

UrlOption = Annotated[str | None, typer.Option("--url", help="Gateway; default: the one here.")]
KeyOption = Annotated[
    str | None, typer.Option("--key", help="API key; default: the admin key here.")
]
_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=5.0, sock_read=60.0)
_ERRORS: Mapping[int, type[MaasError]] = {
    401: AuthenticationFailed,
    403: PermissionDenied,
    404: NotFound,
    409: Conflict,
    429: LimitExceeded,
    503: Unavailable,
}


class GatewayClient:
    """Asks the gateway, one request at a time.

    Args:
        url: Of the gateway, with or without ``/v1``.
        key: API key.
    """

    def __init__(self, url: str, key: str) -> None:
        self._url = url.rstrip("/").removesuffix("/v1") + "/v1"
        self._headers = {"Authorization": f"Bearer {key}"}

    def get(self, path: str, **query: str | int | None) -> dict[str, Any]:
        """Return what is at a path below ``/v1``; what is none is not asked for.

        Raises:
            MaasError: The gateway cannot be reached, or refused.
        """
        given = {name: value for name, value in query.items() if value is not None}
        return asyncio.run(self._ask("GET", path, params=given))

    def post(self, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Post JSON to a path below ``/v1``.

        Raises:
            MaasError: The gateway cannot be reached, or refused.
        """
        return asyncio.run(self._ask("POST", path, json=body))

    def delete(self, path: str) -> dict[str, Any]:
        """Delete what is at a path below ``/v1``.

        Raises:
            MaasError: The gateway cannot be reached, or refused.
        """
        return asyncio.run(self._ask("DELETE", path))

    def upload(self, path: Path, purpose: str) -> dict[str, Any]:
        """Upload a file, read as it is sent.

        Raises:
            ConfigError: The file cannot be read.
            MaasError: The gateway cannot be reached, or refused.
        """
        try:
            with path.open("rb") as file:
                form = aiohttp.FormData({"purpose": purpose})
                form.add_field("file", file, filename=path.name)
                return asyncio.run(self._ask("POST", "/files", data=form))
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror}") from error

    def source(self, path: str) -> HttpSource:
        """Return what is at a path below ``/v1`` as bytes that are read in ranges."""
        return HttpSource(self._url + path, self._headers["Authorization"].removeprefix("Bearer "))

    def every(self, path: str) -> list[dict[str, Any]]:
        """Return all of a list, page by page."""
        return list(self.since(path, known=frozenset()))

    def since(self, path: str, known: frozenset[str]) -> list[dict[str, Any]]:
        """Return what a list that begins with the newest has before anything that is known."""
        found: list[dict[str, Any]] = []
        query: dict[str, str | int] = {"limit": 100}
        while True:
            page = self.get(path, **query)
            for item in page["data"]:
                if item["id"] in known:
                    return found
                found.append(item)
            if not page["has_more"]:
                return found
            query["after"] = page["data"][-1]["id"]

    async def _ask(self, method: str, path: str, **content: Any) -> dict[str, Any]:
        try:
            async with (
                aiohttp.ClientSession(timeout=_TIMEOUT, headers=self._headers) as session,
                session.request(method, self._url + path, **content) as response,
            ):
                answer = await response.read()
                if response.status != 200:
                    raise _refusal(response.status, answer)
                return dict(json.loads(answer))
        except aiohttp.InvalidURL as error:
            raise ConfigError(f"{self._url!r} is no URL") from error
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise Unavailable(
                f"no platform answers at {self._url}; start it with: make up"
            ) from error
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise Unavailable(f"the answer stopped half way: {error or 'too slow'}") from error


def admin_key(settings: Settings) -> str:
    """Return the key of this machine's operator.

    Raises:
        ConfigError: There is none.
    """
    path = settings.home / ADMIN_KEY_FILE
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ConfigError(
            f"{path}: {error.strerror}; start the platform (make up) or give a key with --key"
        ) from error


def client_of(url: str | None, key: str | None) -> GatewayClient:
    """Return a client of the gateway that a command names, or of the one here."""
    settings = resolve_settings()
    return GatewayClient(url or settings.gateway_url, key or admin_key(settings))


def _refusal(status: int, body: bytes) -> MaasError:
    try:
        message = json.loads(body)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = f"the gateway answered {status}"
    kind = _ERRORS.get(status, InvalidRequest if status < 500 else EngineError)
    return kind(str(message))
