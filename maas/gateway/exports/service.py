"""What a new export is made of, checked."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from maas.catalog.card import ModelCard
from maas.catalog.machine import Machine
from maas.core.errors import CapabilityMissing, DoesNotFit, LimitExceeded
from maas.edge.export.charges import ExportLedger
from maas.edge.export.estimate import (
    check_export,
    export_disk_bytes,
    export_memory_bytes,
    export_seconds,
)
from maas.edge.export.offered import check_embedding
from maas.gateway.authority import ProjectAuthority
from maas.gateway.exports.choice import Chooser
from maas.gateway.exports.schemas import ExportBody
from maas.gateway.fine_tuning.service import check_metadata
from maas.store.adapters import TunedModelRepository
from maas.store.aliases import AliasRepository
from maas.store.database import Database
from maas.store.export_records import Export, NewExport
from maas.store.exports import ExportRepository

_MAX_RECOVER_S = 6 * 3600.0


@dataclass(frozen=True)
class Exports:
    """What the routes work with.

    Attributes:
        ledger: Begins and ends exports with their money.
        machine: Where exports run; none where only the cluster knows.
        max_unfinished: Exports of one project that are not over.
    """

    database: Database
    exports: ExportRepository
    ledger: ExportLedger
    tuned_models: TunedModelRepository
    aliases: AliasRepository
    cards: Mapping[str, ModelCard]
    machine: Callable[[], Machine | None]
    max_unfinished: int

    def create(self, who: ProjectAuthority, body: ExportBody, request_id: str) -> Export:
        """Make an export, and hold what it can cost.

        Raises:
            ModelNotFound: The project has no such model.
            PermissionDenied: A licence forbids it.
            CapabilityMissing: It cannot be made here; the message has the numbers.
            BudgetExceeded: It can cost more than is left.
            LimitExceeded: The project has too many that are not over.
        """
        chooser = Chooser(
            self.cards, self.tuned_models, self.aliases, who.project.id, who.access.check_model
        )
        choice = chooser.choose(body)
        _check_combination(body, choice.card)
        self._check_fits(choice.card, body)
        check_metadata(body.metadata or {})
        shrink = None if body.shrink is None else body.shrink.model_dump(mode="json")
        new = NewExport(
            project_id=who.project.id,
            key_id=who.access.key.id,
            request_id=request_id,
            model_id=choice.model_id,
            base_model_id=choice.card.id,
            name=body.name or f"{choice.card.id}-{body.precision}",
            target=body.target,
            precision=body.precision,
            adapter_mode=body.adapter_mode,
            adapters=choice.adapters,
            shrink=shrink,
            quality=body.quality.model_dump(),
            labels=body.metadata or {},
            estimate={
                "ram_bytes": export_memory_bytes(choice.card, body.shrink),
                "disk_bytes": export_disk_bytes(choice.card),
            },
        )
        seconds = export_seconds(
            choice.card,
            body.precision,
            num_adapters=len(choice.adapters),
            recover_s=0.0 if body.shrink is None else body.shrink.recover_s,
        )
        # Counted by the writer whose turn it is: two at once cannot both be the last one.
        with self.database.together():
            self._check_number(who.project.id)
            return self.ledger.create(new, seconds)

    def _check_number(self, project_id: str) -> None:
        num_unfinished = self.exports.count_unfinished(project_id)
        if num_unfinished >= self.max_unfinished:
            raise LimitExceeded(
                f"the project has {num_unfinished} exports that are not over; at most "
                f"{self.max_unfinished}",
                limit="unfinished_exports",
                is_lasting=False,
            )

    def _check_fits(self, card: ModelCard, body: ExportBody) -> None:
        machine = self.machine()
        if body.target == "cuda" and machine is not None and not machine.gpus:
            raise CapabilityMissing(
                "target cuda: a bundle is proved where it is made, and that machine has no GPU",
                param="target",
            )
        memory, disk = (
            (2**63, None)
            if machine is None
            else (machine.memory_total_bytes, machine.disk_free_bytes)
        )
        try:
            # Of all memory there is: what others hold just now is waited for.
            check_export(card, memory, disk, body.shrink)
        except DoesNotFit as error:
            raise CapabilityMissing(error.message, param="model") from error


def _check_combination(body: ExportBody, card: ModelCard) -> None:
    if card.task == "embed":
        check_embedding(card.id, body.precision, body.quality)
    if body.shrink is not None and card.task != "generate":
        raise CapabilityMissing(f"{card.id} is no model that is shrunk: it embeds", param="shrink")
    if body.precision == "fp16" and body.shrink is not None and body.shrink.method != "prune":
        raise CapabilityMissing("fp16 is pruned only: it has no lower ranks", param="shrink")
    if body.precision == "fp16" and body.target != "cuda":
        raise CapabilityMissing(
            f"fp16 is of target cuda only; target {body.target} takes int8", param="precision"
        )
    if body.shrink is not None and body.shrink.recover_s > _MAX_RECOVER_S:
        raise CapabilityMissing(
            f"recover_s: at most {_MAX_RECOVER_S:.0f} seconds, not {body.shrink.recover_s:.0f}",
            param="shrink",
        )
