"""The bundle in use, in memory and on the shelf; how an agent finds one that works at its start."""

import asyncio
import logging
from dataclasses import dataclass

from maas.core.errors import MaasError, NotFound
from maas.edge.runtime.engine.options import EngineOptions
from maas.edge.runtime.fleet.apart import run_apart
from maas.edge.runtime.fleet.probe import probe
from maas.edge.runtime.fleet.state import Mark, StateFile, Trying
from maas.edge.runtime.fleet.wire import Phase, cut
from maas.edge.runtime.server.serve import open_served
from maas.edge.runtime.server.served import Served, Serving
from maas.edge.runtime.shelf.shelf import Held, Shelf
from maas.protocol.devices import SpeedReport, UpdateReport

log = logging.getLogger(__name__)

# An agent that died so often with a bundle does not begin with it again.
MAX_STARTS = 2
_DRAIN_S = 300.0


@dataclass(frozen=True)
class Loader:
    """How bundles are loaded here.

    Attributes:
        options: Of their engines.
        served_model_name: On the wire; none: each bundle's own.
    """

    options: EngineOptions
    served_model_name: str | None = None

    async def load(self, held: Held) -> Served:
        """Load a bundle and have it answer.

        Raises:
            MaasError: It does not work here.
        """
        return await run_apart(lambda: self._load(held))

    def _load(self, held: Held) -> Served:
        manifest = held.manifest
        name = self.served_model_name or manifest.model_id
        parser = manifest.tool_call_parser
        served = open_served(
            held.folder, name, self.options, manifest.adapters, tool_call_parser=parser
        )
        try:
            probe(served)
        except MaasError:
            served.engine.close()
            raise
        return served


class Seat:
    """What answers now.

    Args:
        shelf: Bundles on the disk.
        serving: Lends the loaded one to requests.
        loader: Loads.

    Attributes:
        held: The loaded one; none where there is none.
    """

    def __init__(self, shelf: Shelf, serving: Serving, loader: Loader) -> None:
        self.shelf = shelf
        self.serving = serving
        self.loader = loader
        self.held: Held | None = None
        self._leaving: set[asyncio.Task[None]] = set()

    @property
    def bundle_id(self) -> str | None:
        """Of the loaded one."""
        return self.held.manifest.bundle_id if self.held else None

    def take(self, served: Served, held: Held) -> None:
        """Answer with a bundle from now on; the old one ends when its requests are over."""
        self.held = held
        old = self.serving.exchange(served)
        task = asyncio.create_task(old.retire(_DRAIN_S))
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    async def leave(self, why: str, *, max_wait_s: float = _DRAIN_S) -> None:
        """Answer with no bundle, and wait until the old one's memory is free."""
        self.held = None
        await self.serving.exchange(None, why).retire(max_wait_s)

    async def close(self) -> None:
        """End all requests, those of bundles that leave included."""
        for task in tuple(self._leaving):
            task.cancel()
        await asyncio.gather(*self._leaving, return_exceptions=True)
        await self.leave("the agent stops", max_wait_s=0)


async def bring_up(seat: Seat, store: StateFile) -> None:
    """Load the bundle in use, or the one before where that does not work.

    What an agent died with twice, before it was known to answer, is left for the one before.
    """
    shelf, trying = seat.shelf, store.state.trying
    current = _read(shelf, "current", store)
    is_tried = trying is not None and current is not None and _id(current) == trying.mark.bundle_id
    if trying is not None and trying.num_starts >= MAX_STARTS:
        give_up(store, trying.mark, "load", f"the agent died {trying.num_starts} times with it")
        if is_tried:
            step_back(shelf)
            current, is_tried = _read(shelf, "current", store), False
    elif trying is not None and is_tried:
        store.change(trying=Trying(trying.mark, trying.num_starts + 1))
    for held in (current, _read(shelf, "previous", store)):
        if held is None:
            continue
        try:
            await run_apart(lambda held=held: shelf.verify(held))
            served = await seat.loader.load(held)
        except Exception as error:
            log.exception("bundle %s does not work", _id(held))
            store.add_error("bundle_unusable", f"{_id(held)}: {error}")
            if held is current and is_tried and trying is not None:
                give_up(store, trying.mark, "load", str(error))
            continue
        seat.take(served, held)
        if held is not current:
            _use(shelf, held, store)
        elif is_tried and trying is not None:
            succeed(store, trying.mark, store.state.speed)
        return


def give_up(store: StateFile, mark: Mark, phase: Phase, message: str) -> None:
    """Remember that a bundle does not work here, to be told once and not tried again."""
    error = cut(message)
    report = UpdateReport(mark.bundle_id, mark.attempt, "failed", phase, error)
    store.change(trying=None, failed=mark, result=report)
    store.add_error("update_failed", f"{mark.bundle_id}: {phase}: {error}")


def succeed(store: StateFile, mark: Mark, speed: SpeedReport) -> None:
    """Remember that a bundle answers here."""
    report = UpdateReport(mark.bundle_id, mark.attempt, "succeeded")
    store.change(trying=None, failed=None, result=report, succeeded=mark, speed=speed)


def step_back(shelf: Shelf) -> None:
    """Have the bundle before in use, or none."""
    try:
        shelf.roll_back()
    except NotFound:
        shelf.use_none()


def _use(shelf: Shelf, held: Held, store: StateFile) -> None:
    try:
        shelf.switch(_id(held))
    except MaasError as error:
        # It answers all the same; the next start finds it again.
        store.add_error(error.code, error.message)


def _read(shelf: Shelf, name: str, store: StateFile) -> Held | None:
    """Return a bundle by the file that names it; a damaged one is none."""
    try:
        return shelf.current() if name == "current" else shelf.previous()
    except (MaasError, OSError) as error:
        store.add_error("bundle_unusable", f"{name}: {error}")
        return None


def _id(held: Held) -> str:
    return held.manifest.bundle_id
