"""What a gateway answers a device; what it is told is in ``maas.protocol.devices``."""

from typing import Annotated, Literal

import msgspec

MAX_TEXT = 500
Phase = Literal["pull", "verify", "trial", "load"]
PublicKey = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
DeviceState = Literal["ok", "updating", "error", "idle"]


class Desired(msgspec.Struct, frozen=True):
    """What a device should run; ``attempt`` is its rollout's."""

    bundle_id: str
    size_bytes: int = 0
    attempt: int = 0
    rollout_id: str | None = None


class HeartbeatAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What a device is told; what a newer gateway adds is not read."""

    desired: Desired | None = None
    fallback_model: str | None = None
    heartbeat_s: float = 60.0


class EnrolledDevice(msgspec.Struct, frozen=True):
    """The device as its gateway knows it."""

    id: str
    name: str | None = None
    group: str | None = None


class Enrolment(msgspec.Struct, frozen=True):
    """The answer to a code; a gateway of before does not tell whose key signs bundles."""

    device: EnrolledDevice
    key: str
    bundle_public_key: PublicKey | None = None


def cut(text: str, size: int = MAX_TEXT) -> str:
    """Return a text that is short enough to be told."""
    return text if len(text) <= size else text[: size - 1] + "…"
