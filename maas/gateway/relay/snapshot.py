"""What the data plane routes by: one immutable snapshot, read from the store in the background."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from maas.core.errors import MaasError, ModelNotFound
from maas.engines.contract import EngineCapabilities
from maas.gateway.facts import ModelFacts
from maas.gateway.relay.key_access import KeyAccess, key_access
from maas.gateway.relay.terms import TermsBook
from maas.ledger.prices import PriceBook
from maas.ledger.tariff import Tariff
from maas.store.leases import GATEWAY_PREFIX, LeaseRepository
from maas.store.records import (
    ApiKey,
    Deployment,
    DesiredState,
    Limit,
    Organization,
    Project,
    Replica,
    ReplicaState,
    TunedName,
)
from maas.store.state import StateReader

log = logging.getLogger(__name__)

LEASE_TTL_S = 5.0
_RENEW_EVERY_S = 1.0
_LOOK_APART_S = 0.05


@dataclass(frozen=True)
class Target:
    """A replica that can be asked.

    Attributes:
        authorization: Header value for engines that want a secret.
        adapter_name: The engine's name of the adapter that is asked for; none asks the base.
    """

    replica: Replica
    capabilities: EngineCapabilities
    authorization: str | None = None
    adapter_name: str | None = None

    @property
    def engine_model(self) -> str:
        """The name to ask the engine for."""
        return self.adapter_name or self.replica.engine_model


@dataclass(frozen=True)
class ModelEntry:
    """A public name and who answers for it.

    Attributes:
        root: The model an alias stands for; otherwise the name itself. What is charged, counted
            and limited.
        max_model_len: Shortest context of its deployments in tokens.
        base: The model that it was tuned from; none of a model that was not.
        owner: The project that alone may see it; none for everybody.
        engines: All that its requests share engines with: its base's targets, of an adapter.
    """

    name: str
    root: str
    facts: ModelFacts
    created: int
    max_model_len: int | None
    targets: tuple[Target, ...] = ()
    base: str | None = None
    owner: str | None = None
    engines: tuple[Target, ...] | None = None

    @property
    def is_adapter(self) -> bool:
        """Whether its base's engines answer for it."""
        return self.engines is not None

    @property
    def engine_root(self) -> str:
        """The model whose engines answer: a base's, for all adapters of it."""
        return self.base if self.base and self.is_adapter else self.root

    @cached_property
    def capacity(self) -> int:
        """Requests that all its engines run at a time; 0 where one does not say."""
        shared = self.targets if self.engines is None else self.engines
        each = [target.replica.max_num_seqs for target in shared]
        return sum(each) if all(each) else 0


@dataclass(frozen=True)
class Snapshot:
    """Everything a request is decided by.

    Attributes:
        models: Those that everybody may see.
        tuned: Those that only their owners may see.
        access: What each of the keys may do.
    """

    revision: int = -1
    keys: Mapping[str, ApiKey] = field(default_factory=dict[str, ApiKey])
    models: Mapping[str, ModelEntry] = field(default_factory=dict[str, ModelEntry])
    tuned: Mapping[str, ModelEntry] = field(default_factory=dict[str, ModelEntry])
    access: Mapping[str, KeyAccess] = field(default_factory=dict[str, KeyAccess])
    organizations: Mapping[str, Organization] = field(default_factory=dict[str, Organization])
    projects: Mapping[str, Project] = field(default_factory=dict[str, Project])
    limits: tuple[Limit, ...] = ()
    terms: TermsBook = field(default_factory=lambda: TermsBook(DesiredState(-1), PriceBook({})))

    def resolve(self, name: str, project_id: str) -> ModelEntry:
        """Return the entry of a public name.

        Args:
            name: As it was asked for.
            project_id: Who asks; another project's tuned model does not exist for it.

        Raises:
            ModelNotFound: There is none; the message lists the names there are.
        """
        entry = self.models.get(name)
        if entry is not None:
            return entry
        entry = self.tuned.get(name)
        if entry is None or entry.owner != project_id:
            names = ", ".join(sorted(self.names_for(project_id))) or "none yet"
            shown = name if len(name) <= 100 else name[:100] + "..."
            raise ModelNotFound(
                f"the model {shown!r} does not exist; models here: {names}", param="model"
            )
        return entry

    def names_for(self, project_id: str) -> list[str]:
        """Return the names that a project can ask."""
        return [entry.name for entry in self.seen_by(project_id)]

    def seen_by(self, project_id: str) -> Iterator[ModelEntry]:
        """Yield the models that a project can ask, its own tuned ones last."""
        yield from self.models.values()
        for entry in self.tuned.values():
            if entry.owner == project_id:
                yield entry


Describe = Callable[[str], ModelFacts]
Connect = Callable[[Deployment], tuple[EngineCapabilities, str | None]]


def build_snapshot(
    state: DesiredState,
    prices: PriceBook,
    describe: Describe,
    connect: Connect,
    previous: Snapshot | None = None,
    previous_state: DesiredState | None = None,
) -> Snapshot:
    """Return the snapshot of a state.

    Args:
        state: As read from the store.
        prices: Those in force.
        describe: Facts of a model id.
        connect: Capabilities and authorization of a deployment's engine.
        previous: The snapshot before it; of the same revision, its keys are taken over.
        previous_state: Of which that was built.
    """
    ready: dict[str, list[Replica]] = {}
    for replica in state.replicas:
        if replica.state is ReplicaState.READY:
            ready.setdefault(replica.deployment_id, []).append(replica)
    models: dict[str, ModelEntry] = {}
    whole: dict[str, ModelEntry] = {}
    for deployment in state.deployments:
        name, facts = deployment.model_id, describe(deployment.card_id)
        targets = _targets(deployment, ready.get(deployment.id, []), connect)
        # What was tuned whole is for its owner alone, whatever state it is in.
        among = models if deployment.card_id == name else whole
        known = among.get(name)
        own_length: int | None = deployment.options.get("max_model_len")
        lengths = (own_length, facts.context, known.max_model_len if known else None)
        among[name] = ModelEntry(
            name=name,
            root=name,
            facts=facts,
            created=known.created if known else int(deployment.created_at),
            max_model_len=min(filter(None, lengths), default=None),
            targets=(*(known.targets if known else ()), *targets),
        )
    tuned = _tuned_entries(state.tuned_models, models, whole, describe)
    for alias in state.aliases:
        behind = models.get(alias.model_id) or tuned.get(alias.model_id)
        if behind is not None and alias.name not in models and alias.name not in tuned:
            among = models if behind.owner is None else tuned
            among[alias.name] = replace(behind, name=alias.name)
    if previous is not None and previous.revision == state.revision:
        return replace(previous, models=models, tuned=tuned)
    return Snapshot(
        revision=state.revision,
        models=models,
        tuned=tuned,
        keys={key.id: key for key in state.keys},
        access=key_access(state, previous.access if previous else None, previous_state),
        organizations={item.id: item for item in state.organizations},
        projects={item.id: item for item in state.projects},
        limits=state.limits,
        terms=TermsBook(state, prices),
    )


def _tuned_entries(
    names: Sequence[TunedName],
    models: Mapping[str, ModelEntry],
    whole: Mapping[str, ModelEntry],
    describe: Describe,
) -> dict[str, ModelEntry]:
    """Return the tuned models that may be asked, by name.

    Args:
        names: All there are.
        models: Of the bases' deployments.
        whole: Of the deployments of tuned models that have weights of their own.
        describe: Facts of a model id.
    """
    holders: dict[tuple[str, str], list[Target]] = {}
    for entry in models.values():
        for target in entry.targets:
            for name in target.replica.adapters:
                held = replace(target, adapter_name=name)
                holders.setdefault((entry.root, name), []).append(held)
    tuned: dict[str, ModelEntry] = {}
    for name in names:
        own = whole.get(name.id) if name.adapter_name is None else None
        if not name.is_published:
            continue
        base = own or models.get(name.base_model_id)
        facts = describe(name.base_model_id)
        targets, engines = own.targets if own else (), None
        if name.adapter_name is not None:
            targets = tuple(holders.get((name.base_model_id, name.adapter_name), ()))
            engines = base.targets if base else ()
        tuned[name.id] = ModelEntry(
            name=name.id,
            root=name.id,
            facts=facts,
            created=int(name.created_at),
            max_model_len=base.max_model_len if base else facts.context,
            targets=targets,
            base=name.base_model_id,
            owner=name.project_id,
            engines=engines,
        )
    return tuned


def _targets(deployment: Deployment, ready: list[Replica], connect: Connect) -> list[Target]:
    """Return a deployment's targets; one that cannot be talked to must not stop the others."""
    try:
        capabilities, authorization = connect(deployment)
    except MaasError as error:
        log.error("deployment %s is left out: %s", deployment.id, error.message)
        return []
    return [Target(replica, capabilities, authorization) for replica in ready]


@dataclass(frozen=True)
class Sources:
    """What snapshots are read from, and where a gateway says what it has seen."""

    state: StateReader
    leases: LeaseRepository
    tariff: Tariff


class SnapshotReader:
    """Keeps ``current`` fresh; serves the last good one while the store cannot be read.

    Args:
        sources: The store.
        describe: Facts of a model id.
        connect: Capabilities and authorization of a deployment's engine.
        interval_s: Seconds between two readings.
        gateway_id: Name of this gateway's lease.

    Attributes:
        num_gateways: Those alive on this store, this one among them.
    """

    def __init__(
        self,
        sources: Sources,
        *,
        describe: Describe,
        connect: Connect,
        interval_s: float,
        gateway_id: str,
    ) -> None:
        self.current = Snapshot()
        self.is_stale = False
        self.num_gateways = 1
        self._state, self._leases, self._tariff = sources.state, sources.leases, sources.tariff
        self._prices = PriceBook({})
        self._describe = describe
        self._connect = connect
        self._interval_s = interval_s
        self._gateway_id = gateway_id
        self._known: DesiredState | None = None
        self._task: asyncio.Task[None] | None = None
        self._renewed_at = 0.0
        self._reading = asyncio.Lock()
        self._read_at = 0.0

    async def start(self) -> None:
        """Read once, then go on in the background."""
        await self.refresh()
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Stop reading and give the lease back."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        name = GATEWAY_PREFIX + self._gateway_id
        with contextlib.suppress(MaasError):
            await asyncio.to_thread(self._leases.release, name, self._gateway_id)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._interval_s)
            await self.refresh()

    async def refresh(self) -> None:
        """Read the store now; afterwards what was written before is known here."""
        async with self._reading:
            await self._refresh()

    async def look_again(self, *, patience_s: float = 0.0) -> None:
        """Read the store unless somebody has since this was called.

        All who ask at once share one reading, and readings are so far apart that asking for names
        that do not exist costs the store next to nothing.

        Args:
            patience_s: How long to wait for a reading of somebody else first.
        """
        loop = asyncio.get_running_loop()
        asked_at = loop.time()
        if patience_s:
            await asyncio.sleep(patience_s)
        async with self._reading:
            if self._read_at >= asked_at:
                return
            await asyncio.sleep(max(0.0, self._read_at + _LOOK_APART_S - loop.time()))
            await self._refresh()

    async def _refresh(self) -> None:
        self._read_at = asyncio.get_running_loop().time()
        try:
            state = await asyncio.to_thread(self._state.read, self._known)
            has_moved = self._known is None or state.revision != self._known.revision
            if has_moved:
                self._prices = await asyncio.to_thread(self._tariff.in_force)
            if state != self._known:
                # Off the loop: the keys of ten thousand projects take a while.
                self.current = await asyncio.to_thread(
                    build_snapshot,
                    state,
                    self._prices,
                    self._describe,
                    self._connect,
                    self.current,
                    self._known,
                )
            self._known = state
            await self._renew(force=has_moved)
            self.is_stale = False
        except MaasError as error:
            if not self.is_stale:
                log.error("serving from the last snapshot: %s", error.message)
            self.is_stale = True

    async def _renew(self, *, force: bool) -> None:
        now = asyncio.get_running_loop().time()
        if not force and now - self._renewed_at < _RENEW_EVERY_S:
            return
        await asyncio.to_thread(
            self._leases.acquire,
            GATEWAY_PREFIX + self._gateway_id,
            self._gateway_id,
            ttl_s=LEASE_TTL_S,
            revision=self.current.revision,
        )
        self.num_gateways = await asyncio.to_thread(self._leases.count_gateways)
        self._renewed_at = now
