"""The two questions a device asks its gateway: who am I, and what should I run."""

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import msgspec

from maas.core.errors import AuthenticationFailed, InvalidRequest, SourceUnreachable
from maas.edge.runtime.fleet.identity import Identity, begin_enrolment, write_identity
from maas.edge.runtime.fleet.wire import Enrolment, HeartbeatAnswer, cut
from maas.edge.runtime.shelf.shelf import Shelf
from maas.protocol.devices import HeartbeatRequest

_TIMEOUT = aiohttp.ClientTimeout(total=30, sock_connect=10)
_MAX_ANSWER_BYTES = 1 << 20
_NUM_TRIES = 3
_RETRY_S = 1.0
_Wanted = TypeVar("_Wanted")


@dataclass(frozen=True)
class Gateway:
    """A gateway, as this device asks it.

    Attributes:
        session: For HTTP.
        url: Without ``/v1``.
        key: This device's; none before it is enrolled.
    """

    session: aiohttp.ClientSession
    url: str
    key: str | None = None

    async def heartbeat(self, told: HeartbeatRequest) -> HeartbeatAnswer:
        """Tell how this device is; return what it should run.

        Raises:
            SourceUnreachable: No answer that can be read.
            AuthenticationFailed: The key is refused: the device was retired.
            InvalidRequest: What was told is refused.
        """
        return await self._post("/v1/devices/heartbeat", told, HeartbeatAnswer)

    async def enrol(self, asked: dict[str, Any]) -> Enrolment:
        """Redeem a code.

        Raises:
            SourceUnreachable: No answer that can be read; asking again gives the same device.
            AuthenticationFailed: The code is refused.
            InvalidRequest: What was asked is refused.
        """
        return await self._post("/v1/devices/enrol", asked, Enrolment)

    async def _post(self, path: str, value: Any, wanted: type[_Wanted]) -> _Wanted:
        headers = {"Content-Type": "application/json"}
        if self.key is not None:
            headers["Authorization"] = f"Bearer {self.key}"
        try:
            async with self.session.post(
                self.url + path,
                data=msgspec.json.encode(value),
                headers=headers,
                timeout=_TIMEOUT,
                allow_redirects=False,
            ) as answer:
                body = await answer.content.read(_MAX_ANSWER_BYTES)
                while chunk := await answer.content.read(_MAX_ANSWER_BYTES - len(body)):
                    body += chunk
        except (aiohttp.ClientError, TimeoutError) as error:
            raise SourceUnreachable(f"{self.url}: {error or type(error).__name__}") from error
        if answer.status != 200:
            raise _refusal(answer.status, body, self.url)
        try:
            return msgspec.json.decode(body, type=wanted)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise SourceUnreachable(f"{self.url}: not a gateway's answer: {error}") from error


async def enrol_device(
    home: Path, url: str, code: str, *, name: str | None, facts: dict[str, Any]
) -> Identity:
    """Make this device one of a gateway's; what was lost on the way is asked for again.

    From then on it takes the bundles that the gateway's key signed, the very first one too.

    Raises:
        Conflict: It is enrolled already.
        SourceUnreachable: The gateway did not answer; the same again goes on from there.
        AuthenticationFailed: The code is refused.
    """
    begun = begin_enrolment(home, url, code)
    asked: dict[str, Any] = {"code": code, "nonce": begun.nonce, "facts": facts}
    if name is not None:
        asked["name"] = name
    async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as session:
        gateway = Gateway(session, url)
        enrolment = await _enrol_patiently(gateway, asked)
    public_key = enrolment.bundle_public_key
    if public_key is not None:
        # First: a device that is enrolled and trusts nobody would take anybody's first bundle.
        Shelf(home).trust(public_key)
    identity = msgspec.structs.replace(
        begun,
        device_id=enrolment.device.id,
        key=enrolment.key,
        name=enrolment.device.name,
        enrolled_at=time.time(),
        bundle_public_key=public_key,
    )
    write_identity(home, identity)
    return identity


async def _enrol_patiently(gateway: Gateway, asked: dict[str, Any]) -> Enrolment:
    for _ in range(_NUM_TRIES - 1):
        try:
            return await gateway.enrol(asked)
        except SourceUnreachable:
            await asyncio.sleep(_RETRY_S)
    return await gateway.enrol(asked)


def _refusal(
    status: int, body: bytes, url: str
) -> AuthenticationFailed | InvalidRequest | SourceUnreachable:
    try:
        message = cut(str(msgspec.json.decode(body)["error"]["message"]))
    except (msgspec.DecodeError, UnicodeDecodeError, KeyError, TypeError):
        message = "no message"
    said = f"{url} answered {status}: {message}"
    if status in {401, 403}:
        return AuthenticationFailed(said)
    if 400 <= status < 500 and status not in {408, 429}:
        return InvalidRequest(said)
    return SourceUnreachable(said)
