"""Adapters by their content, and tuned models: the public names of what tuning made."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, or_, select, update
from sqlalchemy.orm import Session

from maas.core.clock import Clock
from maas.core.errors import Conflict, NotFound, Unavailable
from maas.store.database import Database, move_revision
from maas.store.deployments import stop_models
from maas.store.finetune_tables import AdapterRow, TunedModelRow
from maas.store.job_records import Job
from maas.store.records import TunedName
from maas.store.tables import DeploymentRow

ENGINE_NAME_LENGTH = 24
# Removing the files of one takes less.
REMOVAL_S = 60.0
MAX_PROBLEM_CHARS = 2000


class TunedState(StrEnum):
    """Whether a tuned model may be asked."""

    CANDIDATE = "candidate"
    PUBLISHED = "published"
    REFUSED = "refused"


class TunedKind(StrEnum):
    """What was tuned."""

    ADAPTER = "adapter"
    FULL = "full"


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter.

    Attributes:
        id: SHA-256 of its content (``maas.finetune.adapter_files``).
        r: Its rank.
        problem: Why a replica could not load it when it last tried; none where all did.
        is_awaited: Whether a model of it is published as soon as a replica holds it.
    """

    id: str
    base_model_id: str
    r: int
    target_modules: tuple[str, ...]
    size_bytes: int
    created_at: float
    problem: str | None = None
    is_awaited: bool = False

    @property
    def engine_name(self) -> str:
        """The name engines know it by: its content, so it never means anything else."""
        return engine_name(self.id)


@dataclass(frozen=True)
class TunedModel:
    """A public name of tuned weights.

    Attributes:
        weights_key: Blob folder of whole weights; none for an adapter.
        lineage: Data hash, base revision, recipe, job, code version.
        licence: Inherited from the base.
        receipt: Parity between trainer, engine and merged weights.
    """

    id: str
    project_id: str
    base_model_id: str
    kind: TunedKind
    adapter_id: str | None
    weights_key: str | None
    job_id: str | None
    step: int | None
    state: TunedState
    lineage: Mapping[str, Any]
    licence: Mapping[str, Any]
    receipt: Mapping[str, Any] | None
    created_at: float
    published_at: float | None
    deleted_at: float | None


def engine_name(adapter_id: str) -> str:
    """Return the name engines know an adapter by."""
    return f"lora-{adapter_id[:ENGINE_NAME_LENGTH]}"


# Brought by somebody: published once an engine took it.
_AWAITED = (
    TunedModelRow.state == TunedState.CANDIDATE.value,
    TunedModelRow.job_id.is_(None),
    TunedModelRow.deleted_at.is_(None),
)


class AdapterRepository:
    """Reads and writes adapters."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    def now(self) -> float:
        """Return the store's time."""
        return self._clock.now()

    def add(
        self,
        adapter_id: str,
        *,
        base_model_id: str,
        r: int,
        target_modules: tuple[str, ...],
        size_bytes: int,
    ) -> Adapter:
        """Write down an adapter before its files are stored; doing so twice is fine.

        For a while from now on its files are not given up, though no model has it yet.

        Raises:
            Unavailable: Its files, which no model needed, are being removed just now.
        """
        now = self._clock.now()
        with self._database.write(bump_revision=False) as session:
            row = session.get(AdapterRow, adapter_id)
            if row is None:
                row = AdapterRow(
                    id=adapter_id,
                    base_model_id=base_model_id,
                    r=r,
                    target_modules=list(target_modules),
                    problem=None,
                )
                session.add(row)
            elif row.removed_at is not None and now - row.removed_at < REMOVAL_S:
                raise Unavailable("the same adapter is being removed just now; try again shortly")
            row.size_bytes, row.created_at, row.removed_at = size_bytes, now, None
            return adapter_of(row)

    def get(self, adapter_id: str) -> Adapter:
        """Return one adapter.

        Raises:
            NotFound: There is none of this content.
        """
        with self._database.read() as session:
            row = session.get(AdapterRow, adapter_id)
            if row is None:
                raise NotFound(f"no adapter has the id {adapter_id!r}")
            return adapter_of(row)

    def note_problem(self, adapter_id: str, problem: str | None) -> None:
        """Write down why a replica cannot load an adapter, or that it can."""
        text = problem and problem.replace("\0", "")[:MAX_PROBLEM_CHARS]
        with self._database.write(bump_revision=False) as session:
            row = session.get(AdapterRow, adapter_id)
            if row is not None:
                row.problem = text

    def is_needed(self, adapter_id: str) -> bool:
        """Say whether some model has this adapter, of whatever base."""
        living = select(TunedModelRow.id).where(TunedModelRow.adapter_id == adapter_id, ~_is_dead())
        with self._database.read() as session:
            return session.scalars(living).first() is not None

    def wanted(self, base_model_id: str) -> tuple[Adapter, ...]:
        """Return the adapters that replicas of a base should hold, oldest first."""
        names = (
            select(TunedModelRow.adapter_id)
            .where(
                TunedModelRow.base_model_id == base_model_id,
                TunedModelRow.state != TunedState.REFUSED.value,
                TunedModelRow.deleted_at.is_(None),
            )
            .distinct()
        )
        with self._database.read() as session:
            rows = session.scalars(
                select(AdapterRow).where(AdapterRow.id.in_(names)).order_by(AdapterRow.created_at)
            )
            awaited = set(session.scalars(select(TunedModelRow.adapter_id).where(*_AWAITED)))
            return tuple(replace(adapter_of(row), is_awaited=row.id in awaited) for row in rows)


class TunedModelRepository:
    """Reads and writes tuned models."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    def add(self, model: TunedModel) -> TunedModel:
        """Write down a tuned model; one of this name that is the same already is fine.

        Raises:
            Conflict: The name is another model's.
        """
        with self._database.write() as session:
            row = session.get(TunedModelRow, model.id)
            if row is not None:
                known = record_of(row)
                if _content_of(known) != _content_of(model):
                    raise Conflict(f"there is another model of the name {model.id!r}")
                return known
            values: dict[str, Any] = {
                name: getattr(model, name) for name in TunedModel.__dataclass_fields__
            }
            values |= {"kind": model.kind.value, "state": model.state.value}
            values |= {"lineage": dict(model.lineage), "licence": dict(model.licence)}
            session.add(TunedModelRow(**values))
        return model

    def get(self, project_id: str, model_id: str) -> TunedModel:
        """Return a project's tuned model.

        Raises:
            NotFound: It has none of this name.
        """
        with self._database.read() as session:
            return record_of(_of_project(session, project_id, model_id))

    def find(self, model_id: str) -> TunedModel | None:
        """Return a tuned model of whatever project, deleted ones too."""
        with self._database.read() as session:
            row = session.get(TunedModelRow, model_id)
            return None if row is None else record_of(row)

    def receipt_of(self, job: Job) -> Mapping[str, Any] | None:
        """Return the receipt of what a job published, or of what it could not publish."""
        wanted = TunedModelRow.id == job.fine_tuned_model
        if job.fine_tuned_model is None:
            wanted = TunedModelRow.state == TunedState.REFUSED.value
        with self._database.read() as session:
            return session.scalars(
                select(TunedModelRow.receipt).where(TunedModelRow.job_id == job.id, wanted)
            ).first()

    def list(self, project_id: str | None = None) -> tuple[TunedModel, ...]:
        """Return the tuned models of a project, or all; oldest first, without deleted ones."""
        wanted = select(TunedModelRow).where(TunedModelRow.deleted_at.is_(None))
        if project_id is not None:
            wanted = wanted.where(TunedModelRow.project_id == project_id)
        with self._database.read() as session:
            rows = session.scalars(wanted.order_by(TunedModelRow.created_at, TunedModelRow.id))
            return tuple(record_of(row) for row in rows)

    def judge(self, model_id: str, *, state: TunedState, receipt: Mapping[str, Any]) -> None:
        """Publish or refuse a candidate by its receipt; doing so twice is fine."""
        with self._database.write() as session:
            row = session.get_one(TunedModelRow, model_id)
            row.state = state.value
            row.receipt = dict(receipt)
            if state is TunedState.PUBLISHED and row.published_at is None:
                row.published_at = self._clock.now()
            if state is TunedState.REFUSED:
                stop_models(session, [model_id], now=self._clock.now())

    def publish_loaded(self, adapter_id: str, *, loaded_by: str) -> int:
        """Publish the models that were brought with an adapter which a replica now holds.

        Those of jobs wait for their receipts.

        Returns:
            How many there were.
        """
        awaited = select(TunedModelRow).where(*_AWAITED, TunedModelRow.adapter_id == adapter_id)
        with self._database.write() as session:
            rows = session.scalars(awaited).all()
            for row in rows:
                row.state = TunedState.PUBLISHED.value
                row.published_at = self._clock.now()
                row.receipt = {"kind": "loaded", "replica": loaded_by}
            return len(rows)

    def delete(self, project_id: str, model_id: str) -> None:
        """Take a tuned model away, with the deployments that it has of its own.

        Raises:
            NotFound: The project has none of this name.
        """
        with self._database.write() as session:
            now = self._clock.now()
            _of_project(session, project_id, model_id).deleted_at = now
            stop_models(session, [model_id], now=now)

    def unwanted_weights(self) -> tuple[str, ...]:
        """Return the blob folders of whole weights that no model needs and no engine reads."""
        row = TunedModelRow
        deployed = select(DeploymentRow.model_id)
        needed = select(row.weights_key).where(
            row.weights_key.is_not(None), or_(~_is_dead(), row.id.in_(deployed))
        )
        dead = select(row.weights_key).where(
            row.weights_key.is_not(None), _is_dead(), row.weights_key.not_in(needed)
        )
        with self._database.read() as session:
            return tuple(key for key in session.scalars(dead.distinct()) if key is not None)

    def forget_weights(self, weights_key: str) -> None:
        """Write down that the bytes of whole weights are gone."""
        with self._database.write(bump_revision=False) as session:
            session.execute(
                update(TunedModelRow)
                .where(TunedModelRow.weights_key == weights_key, _is_dead())
                .values(weights_key=None)
            )


def withdraw_candidates(session: Session, job_id: str, *, now: float) -> None:
    """Take away, as part of a transaction, what a job made and will never publish."""
    rows = session.scalars(
        select(TunedModelRow).where(
            TunedModelRow.job_id == job_id,
            TunedModelRow.state == TunedState.CANDIDATE.value,
            TunedModelRow.deleted_at.is_(None),
        )
    ).all()
    for row in rows:
        row.deleted_at = now
    if rows:
        stop_models(session, [row.id for row in rows], now=now)
        move_revision(session)


def names_of(session: Session) -> tuple[TunedName, ...]:
    """Return the tuned models there are, oldest first."""
    row = TunedModelRow
    wanted = (
        select(row.id, row.project_id, row.base_model_id, row.adapter_id, row.state, row.created_at)
        .where(row.state != TunedState.REFUSED.value, row.deleted_at.is_(None))
        .order_by(row.created_at, row.id)
    )
    return tuple(
        TunedName(
            id=name,
            project_id=project_id,
            base_model_id=base,
            adapter_name=engine_name(adapter) if adapter else None,
            is_published=state == TunedState.PUBLISHED.value,
            created_at=created_at,
        )
        for name, project_id, base, adapter, state, created_at in session.execute(wanted)
    )


def adapter_of(row: AdapterRow) -> Adapter:
    """Return the row as a frozen record."""
    return Adapter(
        id=row.id,
        base_model_id=row.base_model_id,
        r=row.r,
        target_modules=tuple(row.target_modules),
        size_bytes=row.size_bytes,
        created_at=row.created_at,
        problem=row.problem,
    )


def record_of(row: TunedModelRow) -> TunedModel:
    """Return the row as a frozen record."""
    values: dict[str, Any] = {name: getattr(row, name) for name in TunedModel.__dataclass_fields__}
    values["kind"], values["state"] = TunedKind(row.kind), TunedState(row.state)
    return TunedModel(**values)


def _content_of(model: TunedModel) -> tuple[str | None, ...]:
    return (model.project_id, model.job_id, model.adapter_id, model.weights_key)


def _is_dead() -> ColumnElement[bool]:
    return or_(
        TunedModelRow.deleted_at.is_not(None), TunedModelRow.state == TunedState.REFUSED.value
    )


def _of_project(session: Session, project_id: str, model_id: str) -> TunedModelRow:
    row = session.get(TunedModelRow, model_id)
    if row is None or row.project_id != project_id or row.deleted_at is not None:
        raise NotFound(f"no tuned model has the name {model_id!r}")
    return row
