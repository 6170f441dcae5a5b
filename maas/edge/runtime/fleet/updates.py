"""Another bundle takes the place of the one that answers, under running requests.

Its parts are fetched beside the old one, checked, tried in a process of their own, loaded in this
one and asked; then ``current`` names it, requests go to it, and the old one ends when its own are
over. Whatever fails on the way leaves the old one answering. A record on the disk says what is
being tried, so that an agent that dies of a bundle does not die of it for ever.
"""

import asyncio
import contextlib
import logging
import threading
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from maas.core.errors import (
    AlreadyRunning,
    BundleRefused,
    DoesNotFit,
    SourceUnreachable,
    Superseded,
)
from maas.edge.runtime.engine.options import EngineOptions
from maas.edge.runtime.fleet.apart import run_apart
from maas.edge.runtime.fleet.seat import Seat, give_up, succeed
from maas.edge.runtime.fleet.state import Mark, StateFile, Trying
from maas.edge.runtime.fleet.trial import try_apart
from maas.edge.runtime.fleet.wire import Desired, Phase
from maas.edge.runtime.memory import available_bytes, need_of, refusal
from maas.edge.runtime.shelf.shelf import Held
from maas.edge.runtime.shelf.sources import Source
from maas.protocol.devices import SpeedReport, UpdateReport

log = logging.getLogger(__name__)

_ID_DIGITS = 64
# Tries to fetch that bring no byte although the gateway is there.
_MAX_STALLS = 3
_MAX_RETRY_S = 60.0
Trial = Callable[[Path, EngineOptions], Awaitable[SpeedReport]]


@dataclass(frozen=True)
class _WhileWanted:
    """A source that is given up between two chunks.

    Attributes:
        source: Is read.
        check: Raises where it is wanted no more.
    """

    source: Source
    check: Callable[[], None]

    def read(self, offset: int, size: int) -> Iterator[bytes]:
        """Yield bytes from an offset on."""
        for chunk in self.source.read(offset, size):
            self.check()
            if chunk:
                yield chunk


class Updater:
    """Brings the bundle that the gateway wants.

    Args:
        seat: What answers now.
        store: What must be known after a power cut.
        source_of: Where a bundle is, by its id.
        on_change: Called when an update ended.
        trial: Tries a folder.
        available: Memory that is left, in bytes.

    Attributes:
        progress: Of the update that runs.
        num_contacts: Answers of the gateway so far.
        retry_s: Between tries to fetch, at first.
    """

    def __init__(
        self,
        seat: Seat,
        store: StateFile,
        source_of: Callable[[str], Source],
        *,
        on_change: Callable[[], None],
        trial: Trial = try_apart,
        available: Callable[[], int] = available_bytes,
    ) -> None:
        self._seat = seat
        self._store = store
        self._source_of = source_of
        self._on_change = on_change
        self._trial = trial
        self._available = available
        self._mark: Mark | None = None
        self._task: asyncio.Task[None] | None = None
        self._stop = threading.Event()
        self._stopped = asyncio.Event()
        self.progress: UpdateReport | None = None
        self.num_contacts = 0
        self.retry_s = 1.0

    def want(self, desired: Desired | None) -> None:
        """Have a bundle brought; what is wanted no more is given up."""
        self.num_contacts += 1
        mark = Mark(desired.bundle_id, desired.attempt) if desired else None
        if self._task is not None:
            if mark != self._mark:
                # The next answer of the gateway begins with the other.
                self._stop.set()
                self._stopped.set()
            return
        if desired is None or mark is None:
            return
        failed = self._store.state.failed
        if failed is not None and failed.bundle_id != mark.bundle_id:
            self._store.change(failed=None)
        if self._seat.bundle_id == mark.bundle_id:
            is_told = desired.rollout_id is None or self._store.state.succeeded == mark
            if not is_told:
                succeed(self._store, mark, self._store.state.speed)
            return
        is_known = failed is not None and failed.bundle_id == mark.bundle_id
        if failed is not None and is_known and mark.attempt <= failed.attempt:
            return
        self._mark = mark
        self._stop.clear()
        self._stopped.clear()
        self._report("pull")
        self._task = asyncio.create_task(self._update(mark))

    async def close(self) -> None:
        """Give up what runs."""
        self._stop.set()
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        trying = self._store.state.trying
        if trying is not None:
            # An agent that is told to stop does not die of its bundle.
            self._store.change(trying=Trying(trying.mark, max(0, trying.num_starts - 1)))

    async def _update(self, mark: Mark) -> None:
        try:
            held = await self._fetch(mark)
            await self._install(held, mark)
        except Superseded:
            log.info("bundle %s is wanted no more", mark.bundle_id)
            self._forget_trying()
        except Exception as error:
            log.exception("the update to %s failed", mark.bundle_id)
            phase = self.progress.phase if self.progress else None
            if isinstance(error, BundleRefused) and phase == "pull":
                phase = "verify"
            give_up(self._store, mark, phase or "pull", str(error))
        finally:
            self._task, self.progress = None, None
            self._on_change()

    def _report(self, phase: Phase, percent: float | None = None) -> None:
        if self._mark is not None:
            mark = self._mark
            self.progress = UpdateReport(
                mark.bundle_id, mark.attempt, "downloading", phase, None, percent
            )

    def _check_wanted(self) -> None:
        if self._stop.is_set():
            raise Superseded("another bundle is wanted")

    async def _fetch(self, mark: Mark) -> Held:
        """Return the bundle, whole and checked, on the shelf.

        Raises:
            BundleRefused: It is not what its maker signed, or not the one that is wanted.
            SourceUnreachable: The gateway is there and its bundle has an end too early.
        """
        bundle_id = mark.bundle_id
        if len(bundle_id) != _ID_DIGITS or not set(bundle_id) <= set("0123456789abcdef"):
            raise BundleRefused(f"{bundle_id[:80]!r} is no id of a bundle")
        held = await run_apart(lambda: self._whole(bundle_id))
        if held is None:
            held = await self._fetch_patiently(bundle_id)
        if held.manifest.bundle_id != bundle_id:
            raise BundleRefused(f"the gateway gave another bundle: {held.manifest.bundle_id}")
        return held

    def _whole(self, bundle_id: str) -> Held | None:
        """Return a bundle that is here already, and as its maker signed it."""
        try:
            held = self._seat.shelf.find(bundle_id)
            if held is not None:
                self._seat.shelf.verify(held)
        except (BundleRefused, OSError):
            # Fetching mends it.
            return None
        return held

    async def _fetch_patiently(self, bundle_id: str) -> Held:
        source = _WhileWanted(self._source_of(bundle_id), self._check_wanted)
        num_chunks = num_stalls = 0
        wait_s = self.retry_s

        def told(done: int, total: int) -> None:
            nonlocal num_chunks
            num_chunks += 1
            self._report("pull", 100 * done / total if total else None)

        while True:
            before, contacts = num_chunks, self.num_contacts
            try:
                return (await run_apart(lambda: self._seat.shelf.fetch(source, told))).held
            except AlreadyRunning as error:
                log.info("waiting: %s", error.message)
            except SourceUnreachable as error:
                log.info("fetching goes on later: %s", error.message)
                if num_chunks > before:
                    num_stalls, wait_s = 0, self.retry_s
                elif num_stalls >= _MAX_STALLS:
                    raise
            self._check_wanted()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._stopped.wait()
            self._check_wanted()
            wait_s = min(2 * wait_s, _MAX_RETRY_S)
            # Without a gateway there is nothing to be said of its bundle.
            num_stalls += self.num_contacts > contacts

    async def _install(self, held: Held, mark: Mark) -> None:
        self._report("trial")
        trying = self._store.state.trying
        num_starts = trying.num_starts if trying is not None and trying.mark == mark else 0
        self._store.change(trying=Trying(mark, num_starts + 1))
        old = await self._make_room(held)
        try:
            speed = await self._trial(held.folder, self._seat.loader.options)
            self._check_wanted()
            self._report("load")
            served = await self._seat.loader.load(held)
            try:
                await run_apart(lambda: self._seat.shelf.switch(mark.bundle_id))
            except Exception:
                await asyncio.to_thread(served.engine.close)
                raise
        except Exception:
            if old is not None:
                await self._reopen(old)
            raise
        self._seat.take(served, held)
        succeed(self._store, mark, speed)

    async def _make_room(self, held: Held) -> Held | None:
        """Have memory for a bundle; return the old one where it had to be closed for that.

        Raises:
            DoesNotFit: There is too little even without the old one.
        """
        options = self._seat.loader.options
        need, have = need_of(held.manifest, options), self._available()
        old = self._seat.held
        if have >= need.total_bytes:
            return None
        # What the old one may take of keys and values it hardly takes now.
        freed = need_of(old.manifest, options).model_bytes if old else 0
        if have + freed < need.total_bytes:
            more = f", {freed / 1e6:.0f} MB of them taken by the old bundle" if old else ""
            raise DoesNotFit(f"it {refusal(need, have + freed, more)}")
        await self._seat.leave("another bundle is being loaded, and there is no room for both")
        return old

    async def _reopen(self, old: Held) -> None:
        try:
            self._seat.take(await self._seat.loader.load(old), old)
        except Exception as error:
            log.exception("the old bundle does not load any more")
            self._store.add_error("bundle_unusable", f"{old.manifest.bundle_id}: {error}")

    def _forget_trying(self) -> None:
        self._store.change(trying=None)
