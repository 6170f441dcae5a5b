"""The registry's way in: a checked adapter is stored, written down, and given a public name."""

import re
import secrets
import string
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maas.catalog.card import ModelCard
from maas.core.errors import InvalidRequest, PermissionDenied
from maas.engines.contract import EngineSpec
from maas.finetune.adapter_files import ADAPTER_NAMES, MAX_RANK, check_adapter, keep_adapter
from maas.finetune.base_modules import BaseModules
from maas.store.adapters import (
    Adapter,
    AdapterRepository,
    TunedKind,
    TunedModel,
    TunedModelRepository,
    TunedState,
)
from maas.store.blobs import Blobs, remove_old
from maas.store.records import Deployment

MAX_SUFFIX_CHARS = 64
_SUFFIX = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
_ID_CHARS = string.ascii_lowercase + string.digits
_ID_LENGTH = 8


def blob_key_of(adapter_id: str) -> str:
    """Return where an adapter's files are stored."""
    return f"adapters/{adapter_id}"


def max_rank_of(deployments: Iterable[Deployment], model_id: str) -> int:
    """Return the largest rank that engines of a base take; any, where none is deployed."""
    ranks = [
        int(deployment.options.get("max_lora_rank", EngineSpec.max_lora_rank))
        for deployment in deployments
        if deployment.model_id == model_id
    ]
    return max(ranks, default=MAX_RANK)


def check_allows_tuning(card: ModelCard) -> None:
    """Check that models may be made from a base.

    Raises:
        PermissionDenied: Its licence forbids it.
    """
    if not card.licence.allows_tuning:
        raise PermissionDenied(
            f"the licence of {card.id} ({card.licence.name}) does not allow tuning", param="model"
        )


def check_allows_export(model: TunedModel) -> None:
    """Check that a tuned model may leave the platform.

    Raises:
        PermissionDenied: The licence of its base, as it was when it was tuned, forbids it.
    """
    if not model.licence.get("allows_export", True):
        raise PermissionDenied(
            f"the licence of {model.base_model_id} ({model.licence.get('name')}) does not allow "
            "that what was tuned from it is exported",
            param="model",
        )


def check_suffix(suffix: str) -> str:
    """Return the part of a tuned model's name that its owner chooses.

    Raises:
        InvalidRequest: It would not be one part of a name.
    """
    if len(suffix) > MAX_SUFFIX_CHARS or not _SUFFIX.fullmatch(suffix):
        raise InvalidRequest(
            f"suffix: want 1 to {MAX_SUFFIX_CHARS} letters, digits, '-', '_' or '.', beginning "
            "and ending with a letter or digit",
            param="suffix",
        )
    return suffix


def check_may_bring(card: ModelCard, suffix: str | None) -> None:
    """Check that an adapter of a base may be brought under a name with this suffix.

    Raises:
        InvalidRequest: Its suffix is none, or the base takes no adapters.
        PermissionDenied: The base's licence forbids it.
    """
    check_allows_tuning(card)
    if suffix is not None:
        check_suffix(suffix)
    if card.task != "generate":
        raise InvalidRequest(f"the model {card.id} takes no adapters", param="model")


def public_name(base_model_id: str, organization: str, suffix: str | None) -> str:
    """Return a new name ``ft:<base>:<org>:<suffix>:<id>``; the id makes it the only one.

    Args:
        base_model_id: The base.
        organization: Its name; what would not fit between colons is left out.
        suffix: As its owner chose it.
    """
    of = re.sub(r"[^A-Za-z0-9._-]+", "-", organization).strip("-._") or "org"
    return f"ft:{base_model_id}:{of}:{suffix or ''}:{new_name_id()}"


def new_name_id() -> str:
    """Return a random end of a name."""
    return "".join(secrets.choice(_ID_CHARS) for _ in range(_ID_LENGTH))


@dataclass(frozen=True)
class Brought:
    """An adapter that somebody brings.

    Attributes:
        folder: Its two files; nobody reads it once they were taken.
        organization: Name of the organisation, for the public name.
        source: Where it comes from, as lineage says it.
        max_rank: Largest rank that engines of the base take.
    """

    folder: Path
    project_id: str
    organization: str
    suffix: str | None
    source: Mapping[str, Any]
    max_rank: int = MAX_RANK


@dataclass(frozen=True)
class AdapterRegistry:
    """Stores adapters.

    Attributes:
        blobs: Where their files go.
        adapters: Where they are written down.
        tuned_models: Where their public names are.
        scratch_dir: A folder on this machine's disk to work in.
    """

    blobs: Blobs
    adapters: AdapterRepository
    tuned_models: TunedModelRepository
    scratch_dir: Path

    def bring(
        self, brought: Brought, card: ModelCard, base: BaseModules | None
    ) -> tuple[TunedModel, Adapter]:
        """Take an adapter that was not tuned here, and give it a public name.

        It is a candidate until an engine of the base holds it.

        Args:
            brought: The adapter.
            card: Of the base; its licence is the tuned model's.
            base: That model's modules; none where its weights are not here.

        Raises:
            AdapterRefused: It cannot be served.
            InvalidRequest: Its suffix is none, or the base takes no adapters.
            PermissionDenied: The base's licence forbids it.
        """
        check_may_bring(card, brought.suffix)
        adapter = self.take(brought.folder, card.id, base=base, max_rank=brought.max_rank)
        return self.name(adapter, brought, card), adapter

    def name(self, adapter: Adapter, brought: Brought, card: ModelCard) -> TunedModel:
        """Give an adapter that was taken a public name."""
        suffix = brought.suffix
        base_source = {"id": card.id, "source": list(card.source), "revision": card.revision}
        model = TunedModel(
            id=public_name(card.id, brought.organization, suffix),
            project_id=brought.project_id,
            base_model_id=card.id,
            kind=TunedKind.ADAPTER,
            adapter_id=adapter.id,
            weights_key=None,
            job_id=None,
            step=None,
            state=TunedState.CANDIDATE,
            lineage={**brought.source, "base": base_source},
            licence=card.licence.model_dump(mode="json"),
            receipt=None,
            created_at=self.adapters.now(),
            published_at=None,
            deleted_at=None,
        )
        return self.tuned_models.add(model)

    def take(
        self,
        folder: Path,
        base_model_id: str,
        *,
        base: BaseModules | None,
        max_rank: int = MAX_RANK,
    ) -> Adapter:
        """Check an adapter, store its files and write it down; doing so twice is fine.

        Its row is written before its files are stored, so that nobody takes them for those of an
        adapter that no model needs; nobody reads them before a model has it.

        Args:
            folder: The two files; nothing else may be in it.
            base_model_id: What it was tuned from.
            base: That model's modules; none where its weights are not here.
            max_rank: Largest rank that engines of it take.

        Raises:
            AdapterRefused: It cannot be served.
            DiskFull: There is no room.
        """
        facts = check_adapter(folder, base, max_rank=max_rank)
        self.scratch_dir.mkdir(parents=True, exist_ok=True)
        remove_old(self.scratch_dir, "tmp*")
        with tempfile.TemporaryDirectory(dir=self.scratch_dir) as scratch:
            kept = Path(scratch) / "adapter"
            keep_adapter(folder, kept, base_model_id, facts)
            # What was copied is what was checked, whatever happened to the folder meanwhile.
            facts = check_adapter(kept, base, max_rank=max_rank)
            adapter = self.adapters.add(
                facts.id,
                base_model_id=base_model_id,
                r=facts.r,
                target_modules=facts.target_modules,
                size_bytes=sum((kept / name).stat().st_size for name in ADAPTER_NAMES),
            )
            self.blobs.put_folder(blob_key_of(facts.id), kept, ADAPTER_NAMES)
        return adapter
