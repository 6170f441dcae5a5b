"""Rollouts: a bundle goes to a channel's devices stage by stage, and stops when it fails there.

Each change is one transaction that looks at the rollout anew, so that it may be done again after
any crash, by any controller.
"""

from dataclasses import asdict

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from maas.core.clock import Clock
from maas.core.errors import Conflict, NotFound
from maas.core.ids import new_id
from maas.store.bundles import bundle_row
from maas.store.database import Database
from maas.store.device_groups import find_or_add_channel, unfinished_rollout
from maas.store.fleet_book import DeviceFacts, follows, read_facts
from maas.store.fleet_records import Counts, NewRollout, Rollout, rollout_of, stages_of
from maas.store.fleet_tables import (
    DeviceGroupRow,
    DeviceRolloutRow,
    DeviceRow,
    DeviceUpdateRow,
)
from maas.store.pages import Page, Window, read_page
from maas.store.rollout_rules import Member, RolloutStatus, Step, is_in, must_halt, step_of
from maas.store.told import Told
from maas.store.webhooks import enqueue_for_project

RECENT_S = 86400.0
_HELD_UP = "too many devices fell silent after they were told to take the bundle"


class RolloutRepository:
    """Reads, starts and moves rollouts."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    def create(self, project_id: str, new: NewRollout) -> Rollout:
        """Start a rollout.

        Raises:
            NotFound: The project has no such bundle.
            Conflict: The channel has it already, or another rollout that is not over.
        """
        now = self._clock.now()
        with self._database.write(bump_revision=False) as session:
            bundle_row(session, project_id, new.bundle_id)
            channel = find_or_add_channel(session, project_id, new.channel, now)
            other = unfinished_rollout(session, project_id, new.channel)
            if other is not None:
                raise Conflict(
                    f"rollout {other.id} of the channel {new.channel!r} is {other.status}: "
                    "cancel it first"
                )
            if channel.bundle_id == new.bundle_id:
                raise Conflict(f"the channel {new.channel!r} has this bundle already")
            row = DeviceRolloutRow(
                id=new_id("rollout"),
                project_id=project_id,
                channel=new.channel,
                bundle_id=new.bundle_id,
                previous_bundle_id=channel.bundle_id,
                stages=[asdict(stage) for stage in new.stages],
                max_failure_percent=new.max_failure_percent,
                min_reports=new.min_reports,
                attempt=_next_attempt(session, project_id, new.bundle_id),
                stage=0,
                stage_began_at=now,
                status=RolloutStatus.RUNNING.value,
                num_succeeded=0,
                num_failed=0,
                labels=dict(new.labels),
                created_at=now,
                updated_at=now,
            )
            session.add(row)
            session.flush()
            return self._seen(session, row)

    def get(self, project_id: str, rollout_id: str) -> Rollout:
        """Return a project's rollout.

        Raises:
            NotFound: It has none with this id.
        """
        with self._database.read() as session:
            return self._seen(session, _of_project(session, project_id, rollout_id))

    def list(self, project_id: str, window: Window) -> Page[Rollout]:
        """Return a page of a project's rollouts."""
        wanted = select(DeviceRolloutRow).where(DeviceRolloutRow.project_id == project_id)
        with self._database.read() as session:
            order = (DeviceRolloutRow.created_at, DeviceRolloutRow.id)
            page = read_page(session, wanted, order=order, window=window)
            return Page(tuple(self._seen(session, row) for row in page.items), page.has_more)

    def pause(self, project_id: str, rollout_id: str) -> Rollout:
        """Let no further device take the bundle. Doing so twice is fine.

        Raises:
            NotFound: The project has no such rollout.
            Conflict: It is halted, or over.
        """
        with self._database.write(bump_revision=False) as session:
            row = _of_project(session, project_id, rollout_id)
            if row.status == RolloutStatus.RUNNING:
                self._change(row, RolloutStatus.PAUSED)
            elif row.status != RolloutStatus.PAUSED:
                raise Conflict(f"rollout {rollout_id} is {row.status}: it cannot be paused")
            return self._seen(session, row)

    def resume(self, project_id: str, rollout_id: str) -> Rollout:
        """Go on at the stage it is in; devices that failed try again, and what failed is forgotten.

        Raises:
            NotFound: The project has no such rollout.
            Conflict: It is over.
        """
        with self._database.write(bump_revision=False) as session:
            row = _of_project(session, project_id, rollout_id)
            if row.status in {RolloutStatus.PAUSED, RolloutStatus.HALTED}:
                self._change(row, RolloutStatus.RUNNING)
                row.attempt = _next_attempt(session, project_id, row.bundle_id)
                row.num_failed, row.reason = 0, None
                row.stage_began_at = self._clock.now()
            elif row.status != RolloutStatus.RUNNING:
                raise Conflict(f"rollout {rollout_id} is {row.status}: it cannot be resumed")
            return self._seen(session, row)

    def cancel(self, project_id: str, rollout_id: str) -> Rollout:
        """End a rollout: every device wants its channel's bundle again. Doing so twice is fine.

        Raises:
            NotFound: The project has no such rollout.
            Conflict: It is completed.
        """
        with self._database.write(bump_revision=False) as session:
            row = _of_project(session, project_id, rollout_id)
            if row.status == RolloutStatus.COMPLETED:
                raise Conflict(f"rollout {rollout_id} is completed: it cannot be cancelled")
            if row.status != RolloutStatus.CANCELLED:
                self._end(session, row, RolloutStatus.CANCELLED)
            return self._seen(session, row)

    def running(self) -> tuple[str, ...]:
        """Return the ids of all rollouts that go on, of every project, oldest first."""
        wanted = select(DeviceRolloutRow.id).where(
            DeviceRolloutRow.status == RolloutStatus.RUNNING.value
        )
        with self._database.read() as session:
            return tuple(session.scalars(wanted.order_by(DeviceRolloutRow.created_at)))

    def advance(self, rollout_id: str) -> bool:
        """Begin the next stage where this one is over; after the last the rollout is completed.

        Where too many failed, but fewer than halt it at once, it halts when its stage would end.
        Where devices that fell silent hold it up, it says so.

        Returns:
            Whether anything changed.
        """
        with self._database.read() as session:
            row = session.get(DeviceRolloutRow, rollout_id)
            if _is_known(row, self._step(session, row)):
                return False
        with self._database.write(bump_revision=False) as session:
            # Somebody else may have done so, or a failure halted it meanwhile.
            row = session.get(DeviceRolloutRow, rollout_id)
            step, now = self._step(session, row), self._clock.now()
            if row is None or _is_known(row, step):
                return False
            row.reason = _HELD_UP if step is Step.HOLD else None
            row.updated_at = now
            if step is Step.WAIT:
                return True
            if step is Step.HOLD:
                _tell(session, row, now, event="held_up")
                return True
            if step is Step.HALT:
                halt(session, row, now)
                return True
            if row.stage + 1 < len(row.stages):
                row.stage += 1
                row.stage_began_at = row.updated_at = now
                return True
            channel = find_or_add_channel(session, row.project_id, row.channel, now)
            channel.bundle_id, channel.updated_at = row.bundle_id, now
            self._end(session, row, RolloutStatus.COMPLETED)
            _tell(session, row, now)
            return True

    def _step(self, session: Session, row: DeviceRolloutRow | None) -> Step:
        if row is None or row.status != RolloutStatus.RUNNING:
            return Step.WAIT
        now, stage = self._clock.now(), stages_of(row)[row.stage]
        is_failing = _is_over_limit(row, 0)
        elapsed_s = now - row.stage_began_at
        # Without a look at its devices where it is too early.
        if elapsed_s < stage.min_s and not is_failing:
            return Step.WAIT
        done = _Done.read(session, row)
        members = [
            done.member(device, now)
            for device in done.devices
            if is_in(row.id, device.id, stage.percent)
        ]
        return step_of(
            members,
            elapsed_s=elapsed_s,
            min_s=stage.min_s,
            is_failing=is_failing,
            is_doubtful=_is_over_limit(row, sum(item.is_missing for item in members)),
        )

    def _change(self, row: DeviceRolloutRow, status: RolloutStatus) -> None:
        row.status, row.updated_at = status.value, self._clock.now()

    def _end(self, session: Session, row: DeviceRolloutRow, status: RolloutStatus) -> None:
        row.counts = asdict(_counts(session, row, self._clock.now()))
        self._change(row, status)
        row.finished_at = row.updated_at

    def _seen(self, session: Session, row: DeviceRolloutRow) -> Rollout:
        if row.counts is not None:
            return rollout_of(row, Counts(**row.counts))
        return rollout_of(row, _counts(session, row, self._clock.now()))


class _Done:
    """How far the devices of a rollout are."""

    def __init__(
        self,
        row: DeviceRolloutRow,
        devices: list[DeviceFacts],
        updates: list[tuple[str, int, bool]],
    ) -> None:
        self._bundle_id = row.bundle_id
        self._told = Told(row.attempt, row.id)
        self._succeeded = {device for device, _, is_success in updates if is_success}
        self._failed = {
            device
            for device, attempt, is_success in updates
            if not is_success and attempt == row.attempt
        }
        self.devices = devices

    @classmethod
    def read(cls, session: Session, row: DeviceRolloutRow) -> "_Done":
        devices = read_facts(
            session,
            DeviceRow.project_id == row.project_id,
            DeviceRow.retired_at.is_(None),
            DeviceRow.bundle_id.is_(None),
            DeviceGroupRow.bundle_id.is_(None),
            follows(row.channel),
        )
        updates = session.execute(
            select(
                DeviceUpdateRow.device_id, DeviceUpdateRow.attempt, DeviceUpdateRow.is_success
            ).where(DeviceUpdateRow.rollout_id == row.id)
        )
        return cls(row, devices, [(item[0], item[1], item[2]) for item in updates])

    def succeeded(self, device: DeviceFacts) -> bool:
        """Whether a device said so; one that runs the bundle already has nothing to tell."""
        return device.id in self._succeeded or device.runs == self._bundle_id

    def failed(self, device: DeviceFacts) -> bool:
        """Whether a device failed in this attempt."""
        return device.id in self._failed and not self.succeeded(device)

    def member(self, device: DeviceFacts, now: float) -> Member:
        """Return what a stage's end goes by of a device."""
        return Member(
            is_online=device.is_online(now),
            is_recent=(device.last_seen_at or 0.0) > now - RECENT_S,
            is_done=self.succeeded(device) or self.failed(device),
            is_told=device.told.get(self._bundle_id) == self._told,
        )


def _is_over_limit(row: DeviceRolloutRow, num_missing: int) -> bool:
    """Say whether more failed than may, however few reported, if the missing failed too."""
    return must_halt(
        row.num_failed + num_missing,
        row.num_succeeded,
        min_reports=1,
        max_failure_percent=row.max_failure_percent,
    )


def halt(session: Session, row: DeviceRolloutRow, now: float) -> None:
    """Stop a rollout whose bundle fails, as part of a transaction."""
    row.status, row.updated_at = RolloutStatus.HALTED.value, now
    num_reports = row.num_failed + row.num_succeeded
    row.reason = (
        f"{row.num_failed} of {num_reports} devices that reported failed; "
        f"at most {row.max_failure_percent:g} % may"
    )
    _tell(session, row, now)


def _is_known(row: DeviceRolloutRow | None, step: Step) -> bool:
    """Say whether a step changes nothing of what is written."""
    if row is None or row.status != RolloutStatus.RUNNING:
        return True
    return (step is Step.HOLD and row.reason is not None) or (
        step is Step.WAIT and row.reason is None
    )


def _tell(session: Session, row: DeviceRolloutRow, now: float, *, event: str | None = None) -> None:
    facts = {"id": row.id, "channel": row.channel, "bundle_id": row.bundle_id}
    name = f"device.rollout.{event or row.status}"
    enqueue_for_project(session, row.project_id, name, {**facts, "reason": row.reason}, now=now)


def _counts(session: Session, row: DeviceRolloutRow, now: float) -> Counts:
    done = _Done.read(session, row)
    percent = stages_of(row)[row.stage].percent
    members = [device for device in done.devices if is_in(row.id, device.id, percent)]
    num_succeeded = sum(done.succeeded(device) for device in members)
    num_failed = sum(done.failed(device) for device in members)
    return Counts(
        targeted=len(done.devices),
        eligible=len(members),
        succeeded=num_succeeded,
        failed=num_failed,
        pending=len(members) - num_succeeded - num_failed,
        missing=sum(done.member(device, now).is_missing for device in members),
    )


def _next_attempt(session: Session, project_id: str, bundle_id: str) -> int:
    """Return a number that no rollout of this bundle had: devices that failed then try again."""
    newest = select(func.max(DeviceRolloutRow.attempt)).where(
        DeviceRolloutRow.project_id == project_id, DeviceRolloutRow.bundle_id == bundle_id
    )
    return (session.scalars(newest).one() or 0) + 1


def _of_project(session: Session, project_id: str, rollout_id: str) -> DeviceRolloutRow:
    row = session.get(DeviceRolloutRow, rollout_id)
    if row is None or row.project_id != project_id:
        raise NotFound(f"no rollout has the id {rollout_id!r}")
    return row
