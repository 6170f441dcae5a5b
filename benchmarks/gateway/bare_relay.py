"""The relay with nothing in it: ``python -m benchmarks.gateway.bare_relay PORT ENGINE_URL``.

Same server, same connections to the engine, same way of a chunk; no keys, no parsing, no limits, no
ledger, no metering. What the gateway costs on top of this is what those cost.
"""

import asyncio
import gc
import sys

import uvicorn
import uvloop
from starlette.types import Receive, Scope, Send

from maas.gateway.direct import GatewayProtocol, direct_client
from maas.gateway.relay.engine_http import EngineResponse
from maas.gateway.relay.engine_pool import EnginePool, origin_of


class BareRelay:
    """Hands every request to one engine and its answer back.

    Args:
        url: Of the engine.
    """

    def __init__(self, url: str) -> None:
        self._origin = origin_of(url)
        self._pool: EnginePool | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Relay one request."""
        if scope["method"] == "GET":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"{}"})
            return
        if self._pool is None:
            self._pool = EnginePool(connect_timeout_s=2, idle_timeout_s=60, max_connections=4096)
        body = (await receive())["body"]
        head = (
            f"POST {scope['path']} HTTP/1.1\r\nhost: {self._origin.authority}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        response = await self._pool.post(self._origin, head.encode() + body)
        try:
            if b'"stream":true' in body:
                await self._stream(scope, send, response)
                return
            answer = await response.read()
            headers = [
                (b"content-type", b"application/json"),
                (b"content-length", str(len(answer)).encode()),
            ]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": answer})
        finally:
            response.close()

    async def _stream(self, scope: Scope, send: Send, response: EngineResponse) -> None:
        client = direct_client(scope, send)
        if client is None:
            raise RuntimeError("this server has no direct clients")
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        write = client.write_framed

        def pass_on(chunk: bytes, _start: int) -> bool:
            write(chunk)
            return True

        await response.pipe_to(client.write, pass_on)
        await send({"type": "http.response.body", "body": b""})


async def _serve(port: int, url: str) -> None:
    config = uvicorn.Config(
        BareRelay(url),
        port=port,
        http=GatewayProtocol,
        proxy_headers=False,
        lifespan="off",
        access_log=False,
        server_header=False,
        date_header=False,
        log_config=None,
    )
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
    await asyncio.create_task(uvicorn.Server(config).serve())


if __name__ == "__main__":
    uvloop.run(_serve(int(sys.argv[1]), sys.argv[2]))
