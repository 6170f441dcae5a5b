"""What a new export is made of, checked."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from maas.catalog.card import ModelCard
from maas.catalog.machine import Machine
from maas.core.errors import (
    CapabilityMissing,
    DoesNotFit,
    LimitExceeded,
    ModelNotFound,
    PermissionDenied,
)
from maas.edge.export.estimate import check_export, export_disk_bytes, export_memory_bytes
from maas.finetune.registry import check_allows_export
from maas.gateway.authority import ProjectAuthority
from maas.gateway.exports.schemas import ExportBody
from maas.gateway.fine_tuning.service import check_metadata
from maas.store.adapters import TunedModel, TunedModelRepository, TunedState
from maas.store.database import Database
from maas.store.export_records import Export, NewExport
from maas.store.exports import ExportRepository


@dataclass(frozen=True)
class Exports:
    """What the routes work with.

    Attributes:
        machine: Where exports run; none where only the cluster knows.
        max_unfinished: Exports of one project that are not over.
    """

    database: Database
    exports: ExportRepository
    tuned_models: TunedModelRepository
    cards: Mapping[str, ModelCard]
    machine: Callable[[], Machine | None]
    max_unfinished: int

    def create(self, who: ProjectAuthority, body: ExportBody, request_id: str) -> Export:
        """Make an export.

        Raises:
            ModelNotFound: The project has no such model.
            PermissionDenied: A licence forbids it.
            CapabilityMissing: It cannot be made here; the message has the numbers.
            LimitExceeded: The project has too many that are not over.
        """
        who.access.check_model(body.model, body.model)
        tuned = self._tuned(who.project.id, body.model)
        card = self._card(tuned.base_model_id if tuned else body.model)
        _check_licence(card, tuned)
        self._check_fits(card)
        if body.precision == "fp16" and body.target != "cuda":
            raise CapabilityMissing(
                f"fp16 is of target cuda only; target {body.target} takes int8", param="precision"
            )
        check_metadata(body.metadata or {})
        new = NewExport(
            project_id=who.project.id,
            key_id=who.access.key.id,
            request_id=request_id,
            model_id=body.model,
            base_model_id=card.id,
            name=body.name or f"{card.id}-{body.precision}",
            target=body.target,
            precision=body.precision,
            quality=body.quality.model_dump(),
            labels=body.metadata or {},
            estimate={
                "ram_bytes": export_memory_bytes(card),
                "disk_bytes": export_disk_bytes(card),
            },
        )
        # Counted by the writer whose turn it is: two at once cannot both be the last one.
        with self.database.together():
            num_unfinished = self.exports.count_unfinished(who.project.id)
            if num_unfinished >= self.max_unfinished:
                raise LimitExceeded(
                    f"the project has {num_unfinished} exports that are not over; at most "
                    f"{self.max_unfinished}",
                    limit="unfinished_exports",
                    is_lasting=False,
                )
            return self.exports.create(new)

    def _tuned(self, project_id: str, model: str) -> TunedModel | None:
        found = None if model in self.cards else self.tuned_models.find(model)
        if found is None or found.project_id != project_id or found.deleted_at is not None:
            return None
        if found.state is not TunedState.PUBLISHED:
            return None
        if found.adapter_id is None:
            raise CapabilityMissing(
                f"{found.id} was tuned whole; only adapters are exported", param="model"
            )
        return found

    def _card(self, model: str) -> ModelCard:
        card = self.cards.get(model)
        if card is None:
            raise ModelNotFound(f"no model {model[:100]!r} can be exported", param="model")
        return card

    def _check_fits(self, card: ModelCard) -> None:
        machine = self.machine()
        memory, disk = (
            (2**63, None)
            if machine is None
            else (machine.memory_total_bytes, machine.disk_free_bytes)
        )
        try:
            # Of all memory there is: what others hold just now is waited for.
            check_export(card, memory, disk)
        except DoesNotFit as error:
            raise CapabilityMissing(error.message, param="model") from error


def _check_licence(card: ModelCard, tuned: TunedModel | None) -> None:
    if tuned is not None:
        check_allows_export(tuned)
    if not card.licence.allows_export:
        raise PermissionDenied(
            f"the licence of {card.id} ({card.licence.name}) does not allow its export",
            param="model",
        )
