"""What devices send: enrolments and heartbeats. Ours; OpenAI's API has nothing like them."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

Word = Annotated[str, Meta(min_length=1, max_length=128)]
Text = Annotated[str, Meta(max_length=4096)]
# Ids are kept in columns of their own: nothing but these characters. A ``$`` alone takes a newline.
BundleId = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.:-]{1,128}$(?!\n)")]
Nonce = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{32,128}$(?!\n)")]
Count = Annotated[int, Meta(ge=0, le=2**53)]
Amount = Annotated[float, Meta(ge=0, le=1e15)]
Percent = Annotated[float, Meta(ge=0, le=100)]
Moment = Annotated[float, Meta(ge=0, le=253_402_300_799)]
Fact = str | int | float | bool | None
Facts = Annotated[dict[Word, Fact | dict[Word, Fact]], Meta(max_length=64)]


class EnrolRequest(Struct, forbid_unknown_fields=True):
    """A device that wants a key.

    Attributes:
        nonce: Drawn once and kept: the same code with the same nonce is the same request.
    """

    code: Annotated[str, Meta(min_length=1, max_length=128)]
    nonce: Nonce
    name: Annotated[str, Meta(min_length=1, max_length=255)] | None = None
    facts: Facts = {}


class UpdateReport(Struct):
    """An update under way, or how it ended."""

    bundle_id: BundleId
    attempt: Annotated[int, Meta(ge=0, le=2**31 - 1)]
    status: Literal["downloading", "succeeded", "failed"]
    phase: Literal["pull", "verify", "trial", "load"] | None = None
    error: Text | None = None
    percent: Percent | None = None


class MachineReport(Struct):
    """What a device is."""

    system: Word | None = None
    processor: Annotated[str, Meta(max_length=128)] | None = None
    num_cpus: Annotated[int, Meta(ge=0, le=65_536)] | None = None
    ram_bytes: Count | None = None


class MemoryReport(Struct):
    """Memory now."""

    rss_bytes: Count | None = None
    available_bytes: Count | None = None


class SpeedReport(Struct):
    """Speed of the bundle it runs, where it was measured."""

    load_s: Amount | None = None
    prefill_tok_s: Amount | None = None
    decode_tok_s: Amount | None = None


class EnergyReport(Struct):
    """Energy, where the machine counts it; ``note`` says why not."""

    joules_per_token: Amount | None = None
    watts: Amount | None = None
    battery_percent: Percent | None = None
    is_charging: bool | None = None
    note: Text | None = None


class PaceReport(Struct):
    """How much of the time a device computes, where there is work.

    Attributes:
        share: 1: it never pauses.
        reason: In a word.
        temperature_c: Of its part that is nearest to too hot, in °C.
    """

    share: Annotated[float, Meta(ge=0, le=1)] | None = None
    reason: Word | None = None
    temperature_c: Annotated[float, Meta(ge=-300, le=1000)] | None = None


class CounterReport(Struct):
    """What a device did since it started."""

    requests_total: Count = 0
    completion_tokens_total: Count = 0
    fallbacks_total: Count = 0
    queued: Count = 0


class ErrorReport(Struct):
    """An error, told once."""

    at: Moment
    code: Word
    message: Text


class HeartbeatRequest(Struct):
    """What a device tells each time.

    Fields that are not known here are passed over: an agent that is newer than its gateway must
    still hear what to run.
    """

    agent_version: Word
    started_at: Moment
    state: Literal["ok", "updating", "error", "idle"]
    bundle_id: BundleId | None = None
    previous_bundle_id: BundleId | None = None
    update: UpdateReport | None = None
    machine: MachineReport = msgspec.field(default_factory=MachineReport)
    memory: MemoryReport = msgspec.field(default_factory=MemoryReport)
    speed: SpeedReport = msgspec.field(default_factory=SpeedReport)
    energy: EnergyReport = msgspec.field(default_factory=EnergyReport)
    pace: PaceReport = msgspec.field(default_factory=PaceReport)
    counters: CounterReport = msgspec.field(default_factory=CounterReport)
    errors: Annotated[list[ErrorReport], Meta(max_length=20)] = []


enrol_decoder = msgspec.json.Decoder(EnrolRequest)
heartbeat_decoder = msgspec.json.Decoder(HeartbeatRequest)
