"""Which LoRA adapters a replica holds: made to match the store, again and again.

A replica looks at the store's revision a few times a second, which costs one row; only when it
has moved are the wanted adapters of its base read. Each one that is missing is fetched, checked
and loaded into the engine under a name that is its content; then the replica's lease names it,
and gateways send its requests there. What is no longer wanted leaves the lease first and the
engine later. An adapter that cannot be loaded stops no other: the reason is written beside it,
and it is tried again after a while.
"""

import asyncio
import logging
import shutil
import time
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, field, replace
from pathlib import Path
from typing import Protocol

import aiohttp

from maas.core.errors import AdapterRefused, EngineUnreachable, MaasError
from maas.engines.contract import EngineAdapter
from maas.finetune.adapter_files import ADAPTER_NAMES, check_adapter
from maas.finetune.base_modules import BaseModules
from maas.finetune.registry import blob_key_of
from maas.serving.backoff import backoff_s
from maas.store.adapters import Adapter, AdapterRepository

log = logging.getLogger(__name__)

LOOK_EVERY_S = 0.2
# Gateways that have read an older lease send requests here for a moment longer.
UNLOAD_AFTER_S = 2.0
FIRST_PAUSE_S = 1.0
MAX_PAUSE_S = 60.0


class Folders(Protocol):
    """Where adapters are stored (``maas.store.blobs.Blobs``)."""

    def get_folder(self, key: str, folder: Path, names: tuple[str, ...]) -> None:
        """Make a local folder of what is stored, there whole or not at all."""
        ...


class Shelf(Protocol):
    """Gives an engine what it loads for an adapter."""

    def fetch(self, adapter_id: str) -> Path:
        """Return a folder the engine can load."""
        ...

    def forget(self, adapter_id: str) -> None:
        """Remove this machine's copy."""
        ...


class AdapterShelf:
    """This machine's copies of adapters, which engines read.

    Args:
        folders: Where they are stored.
        home: Folder of the copies.
        base: Modules of the base model.
        max_rank: Largest rank the engine takes.
    """

    def __init__(
        self, folders: Folders, home: Path, *, base: BaseModules | None, max_rank: int
    ) -> None:
        self._folders = folders
        self._home = home
        self._base = base
        self._max_rank = max_rank

    def fetch(self, adapter_id: str) -> Path:
        """Return a folder with the adapter, its content checked.

        Raises:
            AdapterRefused: It cannot be served, or its content is another than its id says.
            NotFound: It is not stored.
            DiskFull: There is no room for it.
        """
        folder = self._home / adapter_id
        try:
            return self._checked(folder, adapter_id)
        except AdapterRefused:
            # The copy may have been damaged; what is stored may still be good.
            shutil.rmtree(folder, ignore_errors=True)
            return self._checked(folder, adapter_id)

    def forget(self, adapter_id: str) -> None:
        """Remove this machine's copy; whoever wants it again fetches it again."""
        shutil.rmtree(self._home / adapter_id, ignore_errors=True)

    def _checked(self, folder: Path, adapter_id: str) -> Path:
        self._home.mkdir(parents=True, exist_ok=True)
        self._folders.get_folder(blob_key_of(adapter_id), folder, ADAPTER_NAMES)
        found = check_adapter(folder, self._base, max_rank=self._max_rank).id
        if found != adapter_id:
            raise AdapterRefused(
                f"the stored adapter {adapter_id[:24]} is damaged: its content is {found[:24]}"
            )
        return folder


@dataclass
class _Trouble:
    num_failures: int = 0
    retry_at: float = 0.0


@dataclass
class AdapterKeeper:
    """Keeps one engine's adapters as the store wants them.

    Args:
        base_model_id: What the engine serves.
        engine: How to talk to it.
        adapters: What is wanted.
        shelf: Where the files come from.
        revision: Reads the store's revision.
        on_held: Told the id of an adapter that is awaited, once the engine holds it.
        clock: Seconds, for pauses.
    """

    base_model_id: str
    _: KW_ONLY
    engine: EngineAdapter
    adapters: AdapterRepository
    shelf: Shelf
    revision: Callable[[], int]
    on_held: Callable[[str], object]
    clock: Callable[[], float] = time.monotonic
    _held: dict[str, str] = field(default_factory=dict)
    _leaving: dict[str, tuple[float, str]] = field(default_factory=dict)
    _troubles: dict[str, _Trouble] = field(default_factory=dict)
    _wanted: dict[str, Adapter] = field(default_factory=dict)
    _seen: int = -1

    @property
    def held(self) -> tuple[str, ...]:
        """The engine's names of the adapters it can be asked for."""
        return tuple(self._held)

    async def keep(self, client: aiohttp.ClientSession, url: str) -> bool:
        """Load one adapter that is missing, and unload those that are not wanted.

        Returns:
            Whether ``held`` is another than before: the lease should say so at once.

        Raises:
            MaasError: The store cannot be read.
        """
        await self._look()
        has_changed = self._let_go()
        await self._unload(client, url)
        await self._publish_awaited()
        missing = self._next()
        has_loaded = missing is not None and await self._load(client, url, missing)
        return has_changed or has_loaded

    @property
    def is_behind(self) -> bool:
        """Whether an adapter could be loaded right now."""
        return self._next() is not None

    async def _look(self) -> None:
        revision = await asyncio.to_thread(self.revision)
        if revision == self._seen:
            return
        wanted = await asyncio.to_thread(self.adapters.wanted, self.base_model_id)
        self._wanted = {adapter.engine_name: adapter for adapter in wanted}
        self._troubles = {n: t for n, t in self._troubles.items() if n in self._wanted}
        self._seen = revision

    def _let_go(self) -> bool:
        gone = [name for name in self._held if name not in self._wanted]
        for name in gone:
            self._leaving[name] = (self.clock() + UNLOAD_AFTER_S, self._held.pop(name))
        return bool(gone)

    async def _unload(self, client: aiohttp.ClientSession, url: str) -> None:
        for name, (moment, adapter_id) in list(self._leaving.items()):
            if name in self._wanted:
                # Wanted again before it was gone; loading it twice is fine.
                del self._leaving[name]
            elif moment <= self.clock():
                try:
                    await self.engine.unload_adapter(client, url, adapter_name=name)
                except MaasError as error:
                    log.warning("%s is not unloaded: %s", name, error.message)
                del self._leaving[name]
                if not await asyncio.to_thread(self.adapters.is_needed, adapter_id):
                    await asyncio.to_thread(self.shelf.forget, adapter_id)

    def _next(self) -> Adapter | None:
        """Return the adapter to load next: the newest, as somebody waits for it."""
        now = self.clock()
        for name, adapter in reversed(self._wanted.items()):
            trouble = self._troubles.get(name)
            if name not in self._held and (trouble is None or trouble.retry_at <= now):
                return adapter
        return None

    async def _load(self, client: aiohttp.ClientSession, url: str, adapter: Adapter) -> bool:
        name = adapter.engine_name
        try:
            folder = await asyncio.to_thread(self.shelf.fetch, adapter.id)
            await self.engine.load_adapter(client, url, adapter_name=name, adapter_dir=folder)
        except MaasError as error:
            await self._note(adapter, error)
            return False
        self._held[name] = adapter.id
        self._troubles.pop(name, None)
        await self._tell(adapter, None)
        log.info("%s is loaded", name)
        return True

    async def _note(self, adapter: Adapter, error: MaasError) -> None:
        name = adapter.engine_name
        trouble = self._troubles.setdefault(name, _Trouble())
        trouble.num_failures += 1
        pause = backoff_s(trouble.num_failures, first_s=FIRST_PAUSE_S, max_s=MAX_PAUSE_S)
        trouble.retry_at = self.clock() + pause
        # An engine that is away says nothing about the adapter.
        if isinstance(error, EngineUnreachable):
            return
        log.warning("%s cannot be loaded: %s", name, error.message)
        await self._tell(adapter, error.message)

    async def _publish_awaited(self) -> None:
        """Publish what was brought with an adapter that is held; its bringer waits for that."""
        for name, adapter in self._wanted.items():
            if adapter.is_awaited and name in self._held:
                await asyncio.to_thread(self.on_held, adapter.id)
                self._wanted[name] = replace(adapter, is_awaited=False)

    async def _tell(self, adapter: Adapter, problem: str | None) -> None:
        if adapter.problem != problem:
            await asyncio.to_thread(self.adapters.note_problem, adapter.id, problem)
            self._wanted[adapter.engine_name] = replace(adapter, problem=problem)
