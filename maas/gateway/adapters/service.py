"""Takes an adapter from two uploaded files."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from maas.catalog.card import ModelCard
from maas.core.errors import InvalidRequest, ModelNotFound
from maas.finetune.adapter_files import (
    CONFIG_NAME,
    MAX_CONFIG_BYTES,
    MAX_WEIGHTS_BYTES,
    WEIGHTS_NAME,
)
from maas.finetune.base_modules import BaseModules, read_base_modules
from maas.finetune.registry import AdapterRegistry, Brought, check_may_bring, max_rank_of
from maas.gateway.adapters.schemas import AdapterBody
from maas.gateway.authority import ProjectAuthority
from maas.gateway.relay.key_access import KeyAccess
from maas.store.adapters import Adapter, TunedModel
from maas.store.deployments import DeploymentRepository
from maas.store.files import FileRepository, StoredFile

PURPOSE = "adapter"


@dataclass(frozen=True)
class BroughtAdapters:
    """What the routes work with.

    Attributes:
        weights_dir: Where prepared weights are, if they are on this machine.
    """

    registry: AdapterRegistry
    files: FileRepository
    deployments: DeploymentRepository
    cards: Mapping[str, ModelCard]
    weights_dir: Path

    def take(self, access: KeyAccess, body: AdapterBody) -> Adapter:
        """Check two files and store what they are; for large ones it takes a while.

        Nothing comes of it until somebody names it; what nobody names is swept away.

        Raises:
            AdapterRefused: They are no adapter that can be served.
            InvalidRequest: A file is of another purpose, or too large.
            ModelNotFound: Nobody has the base.
            NotFound: The project has no such file.
        """
        card = self._card(access, body)
        check_may_bring(card, body.suffix)
        config, weights = self._pair(access.project.id, body)
        registry = self.registry
        registry.scratch_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=registry.scratch_dir) as folder:
            registry.blobs.download(config.blob_key, Path(folder) / CONFIG_NAME)
            registry.blobs.download(weights.blob_key, Path(folder) / WEIGHTS_NAME)
            return registry.take(
                Path(folder), card.id, base=self._base(card.id), max_rank=self._max_rank(card)
            )

    def create(self, who: ProjectAuthority, body: AdapterBody, adapter: Adapter) -> TunedModel:
        """Make a tuned model of an adapter that was taken; says no for the same reasons."""
        card = self._card(who.access, body)
        check_may_bring(card, body.suffix)
        config, weights = self._pair(who.project.id, body)
        organization = who.tenancy.organizations.find(who.organization_id)
        brought = Brought(
            folder=self.registry.scratch_dir,
            project_id=who.project.id,
            organization=organization.name,
            suffix=body.suffix,
            source={
                "source": "upload",
                "files": {
                    CONFIG_NAME: {"id": config.id, "sha256": config.sha256},
                    WEIGHTS_NAME: {"id": weights.id, "sha256": weights.sha256},
                },
            },
            max_rank=self._max_rank(card),
        )
        return self.registry.name(adapter, brought, card)

    def _card(self, access: KeyAccess, body: AdapterBody) -> ModelCard:
        access.check_model(body.model, body.model)
        card = self.cards.get(body.model)
        if card is None:
            names = ", ".join(sorted(c.id for c in self.cards.values() if c.task == "generate"))
            raise ModelNotFound(
                f"no model {body.model[:100]!r} takes adapters; there are {names}", param="model"
            )
        return card

    def _max_rank(self, card: ModelCard) -> int:
        return max_rank_of(self.deployments.list(), card.id)

    def _pair(self, project_id: str, body: AdapterBody) -> tuple[StoredFile, StoredFile]:
        return (
            self._file(project_id, body.config_file, "config_file", MAX_CONFIG_BYTES),
            self._file(project_id, body.weights_file, "weights_file", MAX_WEIGHTS_BYTES),
        )

    def _file(self, project_id: str, file_id: str, param: str, most: int) -> StoredFile:
        file = self.files.get(project_id, file_id)
        if file.purpose != PURPOSE:
            raise InvalidRequest(
                f"{param}: the file {file_id!r} has the purpose {file.purpose!r}; upload it with "
                f"purpose {PURPOSE!r}",
                param=param,
            )
        if file.size_bytes > most:
            raise InvalidRequest(
                f"{param}: {file.size_bytes} bytes; want at most {most}", param=param
            )
        return file

    def _base(self, model_id: str) -> BaseModules | None:
        folder = self.weights_dir / model_id
        return read_base_modules(folder) if folder.is_dir() else None
