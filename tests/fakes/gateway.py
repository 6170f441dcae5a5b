"""A fake gateway: what a device sees of one, with switches for every fault."""

import asyncio
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web

from maas.protocol.devices import enrol_decoder, heartbeat_decoder
from tests.platform import free_port

FALLBACK_MODEL = "cloud-model"
WORDS = ["from", " the", " cloud"]


@dataclass
class FakeGateway:
    """What it saw, and how it is told to behave.

    ``lost_answers``: so many enrolments are done and their answers lost. ``chunk_delay_s`` slows
    bundles down, ``answer_delay_s`` whole answers. ``status`` is what inference is answered with;
    what has the text ``busy_for`` is told 429. ``padding_bytes`` make whole answers longer.
    ``bundle_public_key`` is told at enrolment; without one it is a gateway of before.
    A prompt ``die`` breaks a stream off after its first chunk, ``mute`` before; ``hang`` goes on.
    """

    port: int = field(default_factory=free_port)
    codes: dict[str, str | None] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    bundles: dict[str, Path] = field(default_factory=dict)
    desired: dict[str, Any] | None = None
    fallback_model: str | None = FALLBACK_MODEL
    heartbeat_s: float = 0.1
    heartbeats: list[dict[str, Any]] = field(default_factory=list)
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    bundle_public_key: str | None = None
    lost_answers: int = 0
    chunk_delay_s: float = 0.0
    answer_delay_s: float = 0.0
    status: int = 200
    busy_for: str | None = None
    padding_bytes: int = 0
    num_sent: int = 0
    num_left: int = 0
    runner: web.AppRunner | None = None
    loop: asyncio.AbstractEventLoop | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def want(self, bundle_id: str | None, attempt: int = 0, rollout_id: str | None = None) -> None:
        self.desired = bundle_id and {
            "bundle_id": bundle_id,
            "size_bytes": 1,
            "attempt": attempt,
            "rollout_id": rollout_id,
        }

    def reports(self, status: str, bundle_id: str | None = None) -> list[dict[str, Any]]:
        """Updates that were told with a status."""
        told = [beat["update"] for beat in self.heartbeats if beat["update"]]
        return [u for u in told if u["status"] == status and bundle_id in {None, u["bundle_id"]}]

    def wait(self, is_done: Callable[[], Any], what: str, timeout_s: float = 30) -> Any:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if result := is_done():
                return result
            time.sleep(0.02)
        raise AssertionError(f"waited {timeout_s} s for {what}; {self.heartbeats[-1:]}")

    def wait_beats(self, number: int = 2) -> None:
        """Wait for so many more heartbeats."""
        wanted = len(self.heartbeats) + number
        self.wait(lambda: len(self.heartbeats) >= wanted, "heartbeats")

    def start(self) -> None:
        self._call(self._start())

    def stop(self) -> None:
        """Be gone: its port refuses connections, and open ones break."""
        self._call(self._stop())

    def _call(self, coroutine) -> None:
        assert self.loop is not None
        asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(20)

    async def _start(self) -> None:
        app = web.Application(client_max_size=64 << 20)
        app.router.add_post("/v1/devices/enrol", self._enrol)
        app.router.add_post("/v1/devices/heartbeat", self._heartbeat)
        app.router.add_get("/v1/bundles/{id}/content", self._content)
        for path in ("/v1/chat/completions", "/v1/completions", "/v1/embeddings"):
            app.router.add_post(path, self._infer)
        self.runner = web.AppRunner(
            app, handler_cancellation=True, access_log=None, shutdown_timeout=0.1
        )
        await self.runner.setup()
        await web.TCPSite(self.runner, "127.0.0.1", self.port).start()

    async def _stop(self) -> None:
        if self.runner is not None:
            await self.runner.cleanup()
            self.runner = None

    async def _enrol(self, request: web.Request) -> web.StreamResponse:
        enrol_decoder.decode(await request.read())
        body = await request.json()
        code, nonce = body["code"].replace("-", ""), body["nonce"]
        if code not in self.codes or self.codes[code] not in {None, nonce}:
            return _refused(401, "invalid_enrolment_code")
        self.codes[code] = nonce
        key = self.keys.setdefault(nonce, f"mk-{nonce[:12]}")
        if self.lost_answers > 0:
            self.lost_answers -= 1
            assert request.transport
            request.transport.abort()
        device = {"object": "device", "id": f"device-{nonce[:8]}", "name": body.get("name")}
        answer = {"object": "device.enrolment", "device": device, "key": key}
        if self.bundle_public_key is not None:
            answer["bundle_public_key"] = self.bundle_public_key
        return web.json_response(answer)

    async def _heartbeat(self, request: web.Request) -> web.StreamResponse:
        if not self._knows(request):
            return _refused(401, "invalid_api_key")
        # What the real one would refuse, this one does too.
        heartbeat_decoder.decode(await request.read())
        self.heartbeats.append(await request.json())
        return web.json_response(
            {
                "object": "device.heartbeat",
                "desired": self.desired,
                "fallback_model": self.fallback_model,
                "heartbeat_s": self.heartbeat_s,
                "server_time": int(time.time()),
            }
        )

    async def _content(self, request: web.Request) -> web.StreamResponse:
        path = self.bundles.get(request.match_info["id"])
        if not self._knows(request) or path is None:
            return _refused(404, "not_found")
        data = path.read_bytes()
        wanted = re.match(r"bytes=(\d+)-(\d+)", request.headers["Range"])
        assert wanted
        start, end = int(wanted[1]), min(int(wanted[2]) + 1, len(data))
        if start >= len(data):
            return web.Response(status=416)
        response = web.StreamResponse(status=206, headers={"Content-Length": str(end - start)})
        await response.prepare(request)
        for place in range(start, end, 65536):
            part = data[place : min(place + 65536, end)]
            await response.write(part)
            self.num_sent += len(part)
            if self.chunk_delay_s:
                await asyncio.sleep(self.chunk_delay_s)
        return response

    async def _infer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        self.requests.append(body)
        if not self._knows(request):
            return _refused(401, "invalid_api_key")
        if self.status != 200:
            return _refused(self.status, "made_up")
        if self.busy_for is not None and self.busy_for in json.dumps(body):
            return _refused(429, "rate_limit_exceeded")
        if not body.get("stream"):
            await asyncio.sleep(self.answer_delay_s)
            return web.json_response(
                {"object": "chat.completion", "model": body["model"], "words": WORDS}
                | ({"padding": "x" * self.padding_bytes} if self.padding_bytes else {}),
                headers={"x-request-id": f"req-{len(self.requests)}", "x-internal": "not for you"},
            )
        return await self._stream(request, json.dumps(body))

    async def _stream(self, request: web.Request, text: str) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        if "mute" in text and request.transport:
            await response.write(b"")
            await asyncio.sleep(0.1)
            request.transport.abort()
        try:
            for word in WORDS:
                await response.write(b"data: " + json.dumps({"word": word}).encode() + b"\n\n")
                if "die" in text and request.transport:
                    await asyncio.sleep(0.1)
                    request.transport.abort()
                while "hang" in text:
                    await asyncio.sleep(0.02)
                    await response.write(b": ping\n\n")
            await response.write(b"data: [DONE]\n\n")
        except (asyncio.CancelledError, ConnectionResetError):
            self.num_left += 1
            raise
        return response

    def _knows(self, request: web.Request) -> bool:
        bearer = request.headers.get("Authorization", "")
        return bearer.removeprefix("Bearer ") in self.keys.values()


@contextmanager
def fake_gateway() -> Iterator[FakeGateway]:
    """Run one in a thread."""
    gateway = FakeGateway(loop=asyncio.new_event_loop())
    assert gateway.loop
    thread = threading.Thread(target=gateway.loop.run_forever, daemon=True)
    thread.start()
    gateway.start()
    yield gateway
    gateway.stop()
    gateway.loop.call_soon_threadsafe(gateway.loop.stop)
    thread.join()
    gateway.loop.close()


def _refused(status: int, code: str) -> web.Response:
    error = {"message": f"refused: {code}", "type": "x", "param": None, "code": code}
    return web.json_response({"error": error}, status=status)
