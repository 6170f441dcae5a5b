"""Adapters that come and go while a server runs.

For the platform, which alone reaches its engine's server: whoever may ask for this has the server
read any folder of its machine, so that what a device offers does not have it.
"""

import asyncio
from pathlib import Path

import msgspec
from aiohttp import web

from maas.core.errors import InvalidRequest
from maas.edge.runtime.server.served import Serving


class AdapterRoutes:
    """Loads and unloads adapters as vLLM does.

    Args:
        serving: Lends the bundle.
    """

    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    def add_to(self, app: web.Application) -> None:
        """Add the routes to a server's application."""
        app.router.add_post("/v1/load_lora_adapter", self._load)
        app.router.add_post("/v1/unload_lora_adapter", self._unload)

    async def _load(self, request: web.Request) -> web.Response:
        body = await _body(request)
        name, folder = body["lora_name"], Path(body.get("lora_path", ""))
        with self._serving.use() as served:
            await asyncio.to_thread(served.engine.load_adapter, name, folder)
            served.adapters.add(name)
        return web.Response(text=f"Success: adapter {name} answers.")

    async def _unload(self, request: web.Request) -> web.Response:
        name = (await _body(request))["lora_name"]
        with self._serving.use() as served:
            served.engine.unload_adapter(name)
            served.adapters.discard(name)
        return web.Response(text=f"Success: adapter {name} is gone.")


async def _body(request: web.Request) -> dict[str, str]:
    try:
        body = msgspec.json.decode(await request.read(), type=dict[str, str])
    except msgspec.DecodeError as error:
        raise InvalidRequest(f"want lora_name and lora_path: {error}") from error
    if not body.get("lora_name"):
        raise InvalidRequest("lora_name is required", param="lora_name")
    return body
