"""In front of the two routes that devices use themselves: enrolment and heartbeats.

They take no turn of the control plane, where one change waits for another. A guess at an
enrolment code costs one look-up in a thread that heartbeats do not need.
"""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import msgspec
from starlette.types import Receive, Scope, Send

from maas.core.errors import AuthenticationFailed, MaasError, MalformedBody, Unavailable
from maas.core.settings import GatewaySettings
from maas.gateway.authority import check_is_device
from maas.gateway.devices.desk import HeartbeatDesk
from maas.gateway.devices.pace import HeartbeatPace
from maas.gateway.devices.schemas import shown_device
from maas.gateway.errors import send_error
from maas.gateway.relay.app import Relay
from maas.gateway.relay.http import read_body, request_id_of
from maas.gateway.relay.key_access import KeyAccess
from maas.gateway.relay.snapshot import SnapshotReader
from maas.protocol.devices import (
    EnrolRequest,
    HeartbeatRequest,
    enrol_decoder,
    heartbeat_decoder,
)
from maas.protocol.refusals import invalid
from maas.store.actor import Actor, acting_as
from maas.store.enrolment import Applicant
from maas.store.fleet import Fleet
from maas.store.heartbeats import Beat, DeviceError, Orders, Outcome

log = logging.getLogger(__name__)

MAX_ENROL_BYTES = 16 * 1024
MAX_HEARTBEAT_BYTES = 64 * 1024
# What waits beyond is told to come again: guessing fills no memory.
MAX_ENROLLING = 256
_PATIENCE_S = 0.2
_SPEEDS = ("load_s", "prefill_tok_s", "decode_tok_s")


class DeviceDoor:
    """Answers devices.

    Args:
        fleet: The store's part.
        relay: Knows keys.
        snapshots: Read anew when a key was made.
        settings: Limits of a body.
    """

    def __init__(
        self, fleet: Fleet, *, relay: Relay, snapshots: SnapshotReader, settings: GatewaySettings
    ) -> None:
        self._fleet = fleet
        self._relay = relay
        self._snapshots = snapshots
        self._settings = settings
        self._pace = HeartbeatPace()
        self._desk = HeartbeatDesk(fleet.heartbeats.take)
        self._enroller = ThreadPoolExecutor(1, thread_name_prefix="enrolment")
        self._num_enrolling = 0

    async def heartbeat(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer ``POST /v1/devices/heartbeat``."""
        await _answered(scope, send, partial(self._heartbeat, scope, receive))

    async def enrol(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer ``POST /v1/devices/enrol``."""
        await _answered(scope, send, partial(self._enrol, scope, receive))

    async def _heartbeat(self, scope: Scope, receive: Receive) -> dict[str, Any]:
        access = await self._identify(scope)
        check_is_device(access)
        # Before its body is read: what comes too fast costs as little as can be.
        self._pace.check(access.key.id)
        raw = await self._read(scope, receive, MAX_HEARTBEAT_BYTES)
        body = _decode(heartbeat_decoder, raw)
        return shown_orders(await self._desk.take(beat_of(access.key.id, body)))

    async def _enrol(self, scope: Scope, receive: Receive) -> dict[str, Any]:
        body = _decode(enrol_decoder, await self._read(scope, receive, MAX_ENROL_BYTES))
        if self._num_enrolling >= MAX_ENROLLING:
            raise Unavailable("too many devices enrol at once; try again")
        self._num_enrolling += 1
        try:
            work = partial(self._admit, body, request_id_of(scope))
            loop = asyncio.get_running_loop()
            answer = await loop.run_in_executor(self._enroller, work)
        finally:
            self._num_enrolling -= 1
        # Its key works when it is told. A thousand that come at once share readings, each of which
        # reads all keys there are.
        await self._snapshots.look_again(patience_s=_PATIENCE_S)
        return answer

    def _admit(self, body: EnrolRequest, request_id: str) -> dict[str, Any]:
        applicant = Applicant(body.code, body.nonce, body.name, dict(body.facts))
        with acting_as(Actor("system", "enrolment", request_id)):
            made = self._fleet.enrolment.enrol(applicant)
        device = self._fleet.devices.get(made.project_id, made.device_id)
        return {
            "object": "device.enrolment",
            "device": shown_device(device).model_dump(),
            "key": made.key,
            "bundle_public_key": self._fleet.signing_keys.find_public(),
        }

    async def _identify(self, scope: Scope) -> KeyAccess:
        try:
            return self._relay.identify(scope)
        except AuthenticationFailed:
            # Perhaps made at another gateway a moment ago.
            await self._snapshots.look_again()
            return self._relay.identify(scope)

    async def _read(self, scope: Scope, receive: Receive, max_bytes: int) -> bytes:
        return await read_body(
            scope,
            receive,
            max_bytes=min(max_bytes, self._settings.max_body_bytes),
            timeout_s=self._settings.body_timeout_s,
        )


def beat_of(key_id: str, body: HeartbeatRequest) -> Beat:
    """Return a heartbeat as the store takes it."""
    update = body.update
    outcome = None
    if update is not None and update.status != "downloading":
        outcome = Outcome(
            bundle_id=update.bundle_id,
            attempt=update.attempt,
            is_success=update.status == "succeeded",
            phase=update.phase,
            error=update.error,
        )
    return Beat(
        key_id=key_id,
        bundle_id=body.bundle_id,
        report=msgspec.to_builtins(body),
        speeds={name: getattr(body.speed, name) for name in _SPEEDS},
        outcome=outcome,
        errors=tuple(DeviceError(item.at, item.code, item.message) for item in body.errors),
    )


def shown_orders(orders: Orders) -> dict[str, Any]:
    """Return what a device hears, on the wire."""
    wish = orders.wish
    desired = None
    if wish is not None:
        desired = {
            "bundle_id": wish.bundle_id,
            "size_bytes": orders.size_bytes,
            "attempt": wish.attempt,
            "rollout_id": wish.rollout_id,
        }
    return {
        "object": "device.heartbeat",
        "desired": desired,
        "fallback_model": orders.fallback_model,
        "heartbeat_s": orders.heartbeat_s,
        "server_time": int(orders.at),
    }


def _decode(decoder: msgspec.json.Decoder[Any], raw: bytes) -> Any:
    try:
        return decoder.decode(raw)
    except msgspec.ValidationError as error:
        raise invalid(error) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise MalformedBody(f"the body is not valid JSON: {error}") from error
    except RecursionError as error:
        raise MalformedBody("the body is nested too deep") from error


async def _answered(scope: Scope, send: Send, work: Callable[[], Any]) -> None:
    request_id = request_id_of(scope)
    try:
        body = msgspec.json.encode(await work())
    except MaasError as error:
        await send_error(send, error, request_id)
        return
    except Exception:
        log.exception("%s failed", scope["path"])
        await send_error(send, MaasError("unexpected"), request_id)
        return
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"x-request-id", request_id.encode()),
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
