"""How a rollout goes: who is in it, what a device should run, when a stage ends, when all stops.

Nothing here reads or writes: each is a function of what it is given.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

# 48 bits: every share is an exact float under 1.
_BITS = 48


class RolloutStatus(StrEnum):
    """Where a rollout is."""

    RUNNING = "running"
    PAUSED = "paused"
    HALTED = "halted"
    COMPLETED = "completed"
    CANCELLED = "cancelled"


class Step(StrEnum):
    """What is to be done about a rollout's stage."""

    WAIT = "wait"
    # No report is awaited but of devices that fell silent over the bundle: a person must look.
    HOLD = "hold"
    ADVANCE = "advance"
    HALT = "halt"


OVER = frozenset({RolloutStatus.COMPLETED, RolloutStatus.CANCELLED})


@dataclass(frozen=True)
class Stage:
    """A part of a rollout.

    Attributes:
        percent: Of the channel's devices that are in it, those of the stages before among them.
        min_s: Seconds that it lasts at least.
    """

    percent: float
    min_s: float = 0.0


@dataclass(frozen=True)
class Wish:
    """What a device should run.

    Attributes:
        attempt: Of the rollout; 0 outside one.
    """

    bundle_id: str
    attempt: int = 0
    rollout_id: str | None = None


@dataclass(frozen=True)
class Course:
    """What there is to know of a rollout to say what a device should run."""

    id: str
    bundle_id: str
    status: RolloutStatus
    attempt: int
    percent: float


@dataclass(frozen=True)
class Member:
    """A device of a stage.

    Attributes:
        is_online: It was heard of within three heartbeats.
        is_recent: It was heard of within a day.
        is_done: It said how the update went, or runs the bundle.
        is_told: It was told to take the bundle, in this attempt.
    """

    is_online: bool
    is_recent: bool
    is_done: bool
    is_told: bool = False

    @property
    def is_missing(self) -> bool:
        """Whether it fell silent over the bundle: it was told to take it, and no more was heard.

        Updates take minutes, so few of those that are merely turned off are turned off in one.
        """
        return self.is_told and not self.is_online and not self.is_done


def share_of(rollout_id: str, device_id: str) -> float:
    """Return a device's place in a rollout, from 0 to below 1; the same each time."""
    digest = hashlib.sha256(f"{rollout_id}/{device_id}".encode()).digest()
    return int.from_bytes(digest[: _BITS // 8]) / 2**_BITS


def is_in(rollout_id: str, device_id: str, percent: float) -> bool:
    """Say whether a device is in a stage; who is in one is in all that follow."""
    return share_of(rollout_id, device_id) * 100 < percent


def wish_of(
    device_id: str,
    pins: Iterable[str | None],
    channel: str | None,
    course: Course | None,
    runs: str | None,
) -> Wish | None:
    """Return what a device should run; none leaves it as it is.

    Args:
        device_id: Which.
        pins: Bundles it is bound to, the strongest first.
        channel: The bundle of its channel.
        course: The rollout of its channel that is not over.
        runs: The bundle that it says it runs, if it was told to.
    """
    pinned = next((pin for pin in pins if pin is not None), None)
    if pinned is not None:
        return Wish(pinned)
    if course is not None and course.status not in OVER:
        # One that stands still changes no device any more: not to it, and not back.
        is_wanted = course.status is RolloutStatus.RUNNING or runs == course.bundle_id
        if is_wanted and is_in(course.id, device_id, course.percent):
            return Wish(course.bundle_id, course.attempt, course.id)
    return None if channel is None else Wish(channel)


def must_halt(
    num_failed: int, num_succeeded: int, *, min_reports: int, max_failure_percent: float
) -> bool:
    """Say whether so many failures end a rollout."""
    if num_failed < max(min_reports, 1):
        return False
    return num_failed * 100 > max_failure_percent * (num_failed + num_succeeded)


def is_stage_over(members: Iterable[Member], *, elapsed_s: float, min_s: float) -> bool:
    """Say whether the next stage may begin.

    Its time has passed, who is online has reported, and so has half of those that were heard of
    within a day: silence is no success, of devices that a bundle broke or of a gateway that was
    away.
    """
    known = list(members)
    if elapsed_s < min_s or any(item.is_online and not item.is_done for item in known):
        return False
    recent = [item for item in known if item.is_recent]
    num_done = sum(item.is_done for item in recent)
    return not known or (num_done > 0 and 2 * num_done >= len(recent))


def step_of(
    members: Iterable[Member],
    *,
    elapsed_s: float,
    min_s: float,
    is_failing: bool,
    is_doubtful: bool,
) -> Step:
    """Return what is to be done about a stage.

    Args:
        members: Its devices.
        elapsed_s: Since it began.
        min_s: That it lasts at least.
        is_failing: More of those that reported failed than may, however few reported.
        is_doubtful: More would, if those that are missing were broken. It does not halt for them:
            after a gateway was away all are missing, until they are heard of.
    """
    if is_failing:
        # A stage's time is there to find failures. Where they are found, and no report is awaited
        # that could outweigh them, nothing is left to wait for.
        is_told = is_stage_over(members, elapsed_s=min_s, min_s=min_s)
        return Step.HALT if is_told else Step.WAIT
    known = list(members)
    if is_doubtful:
        is_awaited = any(item.is_online and not item.is_done for item in known)
        return Step.WAIT if elapsed_s < min_s or is_awaited else Step.HOLD
    is_over = is_stage_over(known, elapsed_s=elapsed_s, min_s=min_s)
    return Step.ADVANCE if is_over else Step.WAIT
