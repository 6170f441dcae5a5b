"""Whether a request is answered here or in the cloud: one function of facts."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from maas.core.errors import CapabilityMissing, EngineError, MaasError, PromptTooLong, Unavailable
from maas.edge.runtime.battery import Battery

Mode = Literal["auto", "never", "always"]


class Reason(StrEnum):
    """Why a request goes to the cloud, as people are told."""

    ASKED = "it asks for the cloud"
    MODEL = "it names the cloud's model"
    NO_BUNDLE = "no bundle is loaded on this device"
    CAPABILITY = "it needs what this device's bundle cannot do"
    TOO_LONG = "prompt and answer are longer than this device's context"
    ENGINE = "the engine of this device failed"
    BATTERY = "the battery is low"

    @property
    def is_needed(self) -> bool:
        """Whether this device cannot answer it at all."""
        return self is not Reason.BATTERY


@dataclass(frozen=True)
class Facts:
    """All that decides.

    Attributes:
        mode: What the request says.
        cloud_model: The model there; none: there is no cloud.
        model: The model the request names.
        has_bundle: Whether one is loaded.
        is_served: Whether the request's model is the bundle's.
        needs_tool_parser: Whether the model would write tool calls that nobody here reads.
        battery: None on the mains.
        min_battery_percent: Below it the cloud answers.
        failure: Why this device could not, where it tried.
    """

    mode: Mode
    cloud_model: str | None
    model: str
    has_bundle: bool = True
    is_served: bool = True
    needs_tool_parser: bool = False
    battery: Battery | None = None
    min_battery_percent: float = 0.0
    failure: Reason | None = None


def decide(facts: Facts) -> Reason | None:
    """Return why a request goes to the cloud; none where this device answers it.

    What a request asks for goes first, then what this device cannot, then what it would rather
    not.
    """
    if facts.mode == "always":
        return Reason.ASKED
    if facts.mode == "never" or facts.cloud_model is None:
        return None
    if facts.failure is not None:
        return facts.failure
    if facts.model == facts.cloud_model and not facts.is_served:
        return Reason.MODEL
    if not facts.has_bundle:
        return Reason.NO_BUNDLE
    if facts.needs_tool_parser:
        return Reason.CAPABILITY
    return Reason.BATTERY if _is_low(facts) else None


def failure_of(error: MaasError) -> Reason | None:
    """Return what an error of this device says of it; none where the request itself is wrong."""
    kinds: tuple[tuple[type[MaasError], Reason], ...] = (
        (PromptTooLong, Reason.TOO_LONG),
        (CapabilityMissing, Reason.CAPABILITY),
        (EngineError, Reason.ENGINE),
        (Unavailable, Reason.NO_BUNDLE),
    )
    return next((reason for kind, reason in kinds if isinstance(error, kind)), None)


def _is_low(facts: Facts) -> bool:
    battery = facts.battery
    if battery is None or battery.is_charging:
        return False
    return battery.percent < facts.min_battery_percent
