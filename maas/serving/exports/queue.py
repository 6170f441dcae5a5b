"""The queue of exports: one at a time on a machine, each in a process of its own.

Nothing is remembered between passes that a restart would miss: exports are rows. The process
that makes a bundle ends with the controller that started it; the export then goes silent, and
the next controller begins it again under the next attempt.
"""

import asyncio
import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from maas.core.clock import Clock
from maas.core.errors import (
    AdapterRefused,
    BuildFailed,
    BundleRefused,
    CapabilityMissing,
    ConfigError,
    MaasError,
    NotFound,
    PermissionDenied,
    Superseded,
)
from maas.serving.backoff import backoff_s
from maas.store.export_records import Export, ExportStatus, MadeBundle
from maas.store.exports import ExportRepository

log = logging.getLogger(__name__)

FIRST_RETRY_S = 1.0
MAX_RETRY_S = 60.0
# What trying again does not mend.
_FINAL = (
    *(AdapterRefused, BuildFailed, BundleRefused, CapabilityMissing),
    *(ConfigError, NotFound, PermissionDenied),
)


class Work:
    """One attempt at one export, as the thread that makes the bundle sees it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._progress: Mapping[str, Any] | None = None
        self._end: Callable[[], object] | None = None
        self._is_stopped = False

    @property
    def is_stopped(self) -> bool:
        """Whether nobody wants its outcome any more."""
        return self._is_stopped

    def report(self, progress: Mapping[str, Any]) -> None:
        """Take how far it is: ``phase``, ``percent``, ``message``."""
        with self._lock:
            self._progress = progress

    def take_progress(self) -> Mapping[str, Any] | None:
        """Return what was reported since this was asked before; none where nothing was."""
        with self._lock:
            progress, self._progress = self._progress, None
            return progress

    def end_with(self, end: Callable[[], object]) -> None:
        """Take what ends the process at once."""
        with self._lock:
            self._end = end
            is_late = self._is_stopped
        if is_late:
            end()

    def stop(self) -> None:
        """End it; what comes of it is thrown away."""
        with self._lock:
            self._is_stopped = True
            end = self._end
        if end is not None:
            end()


class Maker(Protocol):
    """What makes a bundle and stores its bytes."""

    def make(self, export: Export, work: Work) -> MadeBundle:
        """Make it; blocks, and ends soon after ``work`` was stopped.

        Raises:
            MaasError: It failed.
        """
        ...

    def refuse(self, export: Export) -> str | None:
        """Return why an export cannot start now; nothing if it can."""
        ...


class Ends(Protocol):
    """What ends exports: the store alone, or the store and the ledger together."""

    def succeed(self, export_id: str, attempt: int, made: MadeBundle) -> object:
        """End one with its bundle.

        Raises:
            Superseded: It is not this runner's any more.
        """
        ...

    def fail(self, export_id: str, attempt: int, error: Mapping[str, Any]) -> object:
        """End one that trying again does not mend.

        Raises:
            Superseded: It is not this runner's any more.
        """
        ...


@dataclass(frozen=True)
class ExportTimes:
    """How long things may take, and how often they may fail.

    Attributes:
        beat_s: Between two signs of life, and so until a cancelled one hears of it.
        silent_s: After which an export without a sign of life has no runner.
        max_failures: Attempts that may end without an outcome.
    """

    beat_s: float = 1.0
    silent_s: float = 30.0
    max_failures: int = 3


class ExportQueue:
    """Works on exports, one at a time, in the order they were asked for.

    Args:
        exports: What should be made.
        maker: What makes it.
        clock: For pauses and silence.
        ends: Ends exports, with all that belongs into that transaction.
        times: How long things may take.
    """

    def __init__(
        self,
        exports: ExportRepository,
        maker: Maker,
        *,
        clock: Clock,
        ends: Ends | None = None,
        times: ExportTimes | None = None,
    ) -> None:
        self._exports = exports
        self._maker = maker
        self._clock = clock
        self._ends = ends or exports
        self._times = times or ExportTimes()

    async def run(self, interval_s: float) -> None:
        """Run passes until cancelled; one that fails does not keep the next from its turn."""
        while True:
            try:
                await self.step()
            except MaasError as error:
                log.error("this pass over the exports failed: %s", error.message)
            await asyncio.sleep(interval_s)

    async def step(self) -> None:
        """Work on the export whose turn it is, to its end; nothing where it is nobody's."""
        now = self._clock.now()
        for export in await asyncio.to_thread(self._exports.unfinished):
            try:
                if export.status is ExportStatus.RUNNING:
                    if (export.runner_seen_at or 0.0) > now - self._times.silent_s:
                        # Another controller's, or one just killed: never two on one machine.
                        return
                    await self._failed(export, "it went silent")
                elif (export.retry_at or 0.0) <= now:
                    reason = await asyncio.to_thread(self._maker.refuse, export)
                    if reason is None:
                        await self._work(export)
                        return
                    await asyncio.to_thread(self._exports.wait, export.id, export.attempt, reason)
            except Superseded:
                # Somebody cancelled or took it since the rows were read.
                continue

    async def _work(self, export: Export) -> None:
        taken = await asyncio.to_thread(self._exports.take, export.id, seen_attempt=export.attempt)
        work = Work()
        making = asyncio.create_task(asyncio.to_thread(self._maker.make, taken, work))
        try:
            while not (await asyncio.wait({making}, timeout=self._times.beat_s))[0]:
                await asyncio.to_thread(
                    self._exports.write, taken.id, taken.attempt, work.take_progress()
                )
        except BaseException:
            # Cancelled by a person, taken by another controller, or this one ends.
            work.stop()
            await asyncio.wait({making})
            making.exception()
            raise
        await self._end(taken, making)

    async def _end(self, taken: Export, making: "asyncio.Task[MadeBundle]") -> None:
        try:
            made = making.result()
        except _FINAL as error:
            param = error.context.get("param")
            failure = {"code": error.code, "message": error.message, "param": param}
            await asyncio.to_thread(self._ends.fail, taken.id, taken.attempt, failure)
        except MaasError as error:
            await self._failed(taken, error.message)
        except OSError as error:
            # A disk that is full, say: it must not end all else that the controller does.
            log.exception("export %s", taken.id)
            await self._failed(taken, str(error))
        else:
            await asyncio.to_thread(self._ends.succeed, taken.id, taken.attempt, made)

    async def _failed(self, export: Export, reason: str) -> None:
        num_failures = export.num_failures + 1
        if num_failures >= self._times.max_failures:
            message = f"its process ended {num_failures} times: {reason}"
            error = {"code": "export_failed", "message": message, "param": None}
            await asyncio.to_thread(self._ends.fail, export.id, export.attempt, error)
            return
        pause = backoff_s(num_failures, first_s=FIRST_RETRY_S, max_s=MAX_RETRY_S)
        await asyncio.to_thread(
            self._exports.failed_once,
            export.id,
            export.attempt,
            retry_at=self._clock.now() + pause,
            reason=reason,
        )
