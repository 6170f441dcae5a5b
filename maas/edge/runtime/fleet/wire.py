"""What a device and its gateway say to each other, as ``/v1/devices`` has it."""

from typing import Literal

import msgspec

MAX_TEXT = 500
Phase = Literal["pull", "verify", "trial", "load"]
DeviceState = Literal["ok", "updating", "error", "idle"]


class Speed(msgspec.Struct, frozen=True):
    """Seconds, and tokens a second; none where not measured yet."""

    load_s: float | None = None
    prefill_tok_s: float | None = None
    decode_tok_s: float | None = None


class Machine(msgspec.Struct, frozen=True):
    """What the device is."""

    system: str
    processor: str
    num_cpus: int
    ram_bytes: int


class Memory(msgspec.Struct, frozen=True):
    """Of this process, and what the machine has left."""

    rss_bytes: int
    available_bytes: int


class Energy(msgspec.Struct, frozen=True):
    """None where the machine cannot tell; ``note`` says how it was measured, or why not."""

    joules_per_token: float | None = None
    watts: float | None = None
    battery_percent: float | None = None
    is_charging: bool | None = None
    note: str | None = None


class Counts(msgspec.Struct, frozen=True):
    """Since the agent's start; ``queued`` now."""

    requests_total: int = 0
    completion_tokens_total: int = 0
    fallbacks_total: int = 0
    queued: int = 0


class UpdateReport(msgspec.Struct, frozen=True):
    """How far an update is, or how it ended."""

    bundle_id: str
    attempt: int
    status: Literal["downloading", "succeeded", "failed"]
    phase: Phase | None = None
    error: str | None = None
    percent: float | None = None


class ErrorReport(msgspec.Struct, frozen=True):
    """Something that went wrong."""

    at: int
    code: str
    message: str


class Heartbeat(msgspec.Struct, frozen=True, kw_only=True):
    """What a device tells of itself, again and again."""

    agent_version: str
    started_at: int
    bundle_id: str | None
    previous_bundle_id: str | None
    state: DeviceState
    update: UpdateReport | None
    machine: Machine
    memory: Memory
    speed: Speed
    energy: Energy
    counters: Counts
    errors: tuple[ErrorReport, ...]


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
    """The answer to a code."""

    device: EnrolledDevice
    key: str


def cut(text: str, size: int = MAX_TEXT) -> str:
    """Return a text that is short enough to be told."""
    return text if len(text) <= size else text[: size - 1] + "…"
