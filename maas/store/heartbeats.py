"""Heartbeats: what devices tell is written down, and each hears what it should run.

Many are taken in one transaction. A device that says that an update failed may halt its rollout:
in this very transaction, so that no device that is answered after it is told to take the bundle.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from maas.core.clock import Clock
from maas.core.errors import AuthenticationFailed, MaasError
from maas.store.database import Database
from maas.store.device_events import News, tell, tell_all
from maas.store.edge_tables import BundleRow
from maas.store.fleet_book import DeviceFacts, FleetBook, read_book, read_facts
from maas.store.fleet_tables import DeviceRolloutRow, DeviceRow, DeviceStateRow, DeviceUpdateRow
from maas.store.rollout_rules import RolloutStatus, Wish, must_halt
from maas.store.rollouts import halt
from maas.store.text import as_text
from maas.store.told import Told, kept, with_wish

_MAX_ERROR = 4096


@dataclass(frozen=True)
class Outcome:
    """How an update of a device ended, as it says."""

    bundle_id: str
    attempt: int
    is_success: bool
    phase: str | None = None
    error: str | None = None


@dataclass(frozen=True)
class DeviceError:
    """An error that a device tells of."""

    at: float
    code: str
    message: str


@dataclass(frozen=True)
class Beat:
    """One heartbeat, checked.

    Attributes:
        key_id: Of the device's key.
        bundle_id: That it runs.
        report: All of it, as it is shown.
        speeds: ``load_s``, ``prefill_tok_s``, ``decode_tok_s``, where they were measured.
    """

    key_id: str
    bundle_id: str | None
    report: Mapping[str, Any]
    speeds: Mapping[str, float | None] = field(default_factory=dict[str, float | None])
    outcome: Outcome | None = None
    errors: tuple[DeviceError, ...] = ()


@dataclass(frozen=True)
class Orders:
    """What a device hears.

    Attributes:
        size_bytes: Of the bundle it should run.
    """

    wish: Wish | None
    size_bytes: int
    fallback_model: str | None
    heartbeat_s: int
    at: float


class HeartbeatRepository:
    """Takes heartbeats."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    def take(self, beats: Sequence[Beat]) -> list[Orders | MaasError]:
        """Write heartbeats down, in their order; return what each device hears, or its refusal."""
        with self._database.write(bump_revision=False) as session:
            taking = _Taking.begin(session, beats, self._clock.now())
            wishes = [taking.take(beat) for beat in beats]
            taking.write()
            sizes = _sizes(session, {wish.bundle_id for wish in wishes if isinstance(wish, Wish)})
            return [
                taking.orders(beat, wish, sizes) for beat, wish in zip(beats, wishes, strict=True)
            ]


@dataclass
class _Taking:
    """Heartbeats of one transaction; a later one of a device sees what an earlier one changed."""

    session: Session
    now: float
    devices: dict[str, DeviceFacts]
    book: FleetBook
    states: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])
    told: dict[str, Mapping[str, Told]] = field(default_factory=dict[str, Mapping[str, Told]])

    @classmethod
    def begin(cls, session: Session, beats: Sequence[Beat], now: float) -> "_Taking":
        keys = {beat.key_id for beat in beats}
        devices = {item.key_id: item for item in read_facts(session, DeviceRow.key_id.in_(keys))}
        book = read_book(session, {item.project_id for item in devices.values()})
        return cls(session, now, devices, book)

    def take(self, beat: Beat) -> Wish | MaasError | None:
        device = self.devices.get(beat.key_id)
        if device is None or device.retired_at is not None:
            return AuthenticationFailed("the device of this API key is retired")
        told = self.told.get(device.id, device.told)
        if beat.outcome is not None and beat.outcome.bundle_id in told:
            self._conclude(device, beat.outcome, told[beat.outcome.bundle_id])
        if beat.errors:
            news = [_news_of(error) for error in beat.errors]
            tell_all(self.session, device.id, news, self.now)
        wish = self.book.wish_for(device, beat.bundle_id, told)
        if wish is not None:
            told = with_wish(told, wish)
        self.told[device.id] = told
        self.states[device.id] = {
            "device_id": device.id,
            "last_seen_at": self.now,
            "bundle_id": beat.bundle_id,
            "told": kept(told),
            "report": dict(beat.report),
            **beat.speeds,
        }
        return wish

    def write(self) -> None:
        if self.states:
            self.session.execute(update(DeviceStateRow), list(self.states.values()))

    def orders(
        self, beat: Beat, wish: Wish | MaasError | None, sizes: Mapping[str, int]
    ) -> Orders | MaasError:
        if isinstance(wish, MaasError):
            return wish
        device = self.devices[beat.key_id]
        return Orders(
            wish=wish,
            size_bytes=sizes[wish.bundle_id] if wish is not None else 0,
            fallback_model=device.fallback_model,
            heartbeat_s=device.heartbeat_s,
            at=self.now,
        )

    def _conclude(self, device: DeviceFacts, outcome: Outcome, told: Told) -> None:
        """Write down how an update ended, once; count it in its rollout."""
        if outcome.attempt > told.attempt:
            # It was told no such attempt: what it says of it must not hide what comes of one.
            return
        rollout = self._rollout_of(device, outcome, told)
        key = (device.id, outcome.bundle_id, outcome.attempt)
        known = self.session.get(DeviceUpdateRow, key)
        if known is not None:
            if known.is_success and not outcome.is_success:
                self._take_back(device, known, outcome, rollout)
            return
        if rollout is not None:
            self._count(device, rollout, outcome)
        self.session.add(
            DeviceUpdateRow(
                device_id=device.id,
                bundle_id=outcome.bundle_id,
                attempt=outcome.attempt,
                rollout_id=None if rollout is None else rollout.id,
                is_success=outcome.is_success,
                phase=outcome.phase,
                error=_short(outcome.error),
                created_at=self.now,
            )
        )
        self.session.flush()
        tell(self.session, device.id, _outcome_news(outcome, rollout), self.now)

    def _take_back(
        self,
        device: DeviceFacts,
        known: DeviceUpdateRow,
        outcome: Outcome,
        rollout: DeviceRolloutRow | None,
    ) -> None:
        """Write down that a bundle failed after all, and the device went back; once."""
        was_counted = known.rollout_id is not None
        if rollout is not None and was_counted and known.rollout_id != rollout.id:
            rollout = None
        known.is_success, known.phase, known.error = False, outcome.phase, _short(outcome.error)
        if rollout is not None:
            known.rollout_id = rollout.id
        self.session.flush()
        if rollout is not None:
            if was_counted:
                rollout.num_succeeded -= not self._has_succeeded(device, rollout)
            self._count(device, rollout, outcome)
        news = _outcome_news(outcome, rollout)
        tell(self.session, device.id, replace(news, key=f"{news.key}:after"), self.now)

    def _rollout_of(
        self, device: DeviceFacts, outcome: Outcome, told: Told
    ) -> DeviceRolloutRow | None:
        """Return the rollout that an outcome counts in: that in which the device was told so."""
        if not outcome.attempt:
            return None
        rollout = self.book.rollout_for(device)
        return rollout if rollout is not None and rollout.id == told.rollout_id else None

    def _count(self, device: DeviceFacts, rollout: DeviceRolloutRow, outcome: Outcome) -> None:
        if outcome.is_success:
            # A device counts once, in whatever attempt.
            rollout.num_succeeded += not self._has_succeeded(device, rollout)
        elif outcome.attempt == rollout.attempt:
            rollout.num_failed += 1
            if rollout.status == RolloutStatus.RUNNING and must_halt(
                rollout.num_failed,
                rollout.num_succeeded,
                min_reports=rollout.min_reports,
                max_failure_percent=rollout.max_failure_percent,
            ):
                halt(self.session, rollout, self.now)

    def _has_succeeded(self, device: DeviceFacts, rollout: DeviceRolloutRow) -> bool:
        found = select(DeviceUpdateRow.attempt).where(
            DeviceUpdateRow.device_id == device.id,
            DeviceUpdateRow.rollout_id == rollout.id,
            DeviceUpdateRow.is_success,
        )
        return self.session.scalars(found).first() is not None


def _sizes(session: Session, bundle_ids: set[str]) -> dict[str, int]:
    if not bundle_ids:
        return {}
    wanted = select(BundleRow.id, BundleRow.size_bytes).where(BundleRow.id.in_(bundle_ids))
    return {row[0]: row[1] for row in session.execute(wanted)}


def _short(text: str | None) -> str | None:
    return None if text is None else as_text(text)[:_MAX_ERROR]


def _outcome_news(outcome: Outcome, rollout: DeviceRolloutRow | None) -> News:
    ending = "succeeded" if outcome.is_success else "failed"
    where = f" in {outcome.phase}" if outcome.phase else ""
    reason = f": {outcome.error}" if outcome.error else ""
    return News(
        key=f"update:{outcome.bundle_id}:{outcome.attempt}",
        type=f"update_{ending}",
        message=f"The update to {outcome.bundle_id[:12]} {ending}{where}{reason}",
        level="info" if outcome.is_success else "error",
        data={
            "bundle_id": outcome.bundle_id,
            "attempt": outcome.attempt,
            "rollout_id": None if rollout is None else rollout.id,
            "phase": outcome.phase,
        },
    )


def _news_of(error: DeviceError) -> News:
    told = f"{error.at}|{error.code}|{error.message}"
    return News(
        key="error:" + hashlib.sha256(told.encode(errors="replace")).hexdigest(),
        type="error",
        message=error.message,
        level="error",
        data={"code": error.code, "at": error.at},
    )
