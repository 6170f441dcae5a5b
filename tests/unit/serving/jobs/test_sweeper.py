"""Adapters that no model needs are removed, and those that somebody needs never are."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from maas.core.errors import Unavailable
from maas.core.settings import Settings
from maas.finetune.adapter_files import ADAPTER_NAMES
from maas.finetune.registry import AdapterRegistry, Brought, blob_key_of
from maas.serving.jobs.sweeper import AdapterSweeper
from maas.store.adapter_removal import KEPT_UNUSED_S, AdapterRemoval
from maas.store.adapters import (
    REMOVAL_S,
    AdapterRepository,
    TunedModel,
    TunedModelRepository,
    TunedState,
)
from maas.store.blobs import Blobs, open_blobs
from maas.store.state import ensure_project
from tests.conftest import MovableClock
from tests.fakes.adapters import CONFIG, write_adapter
from tests.unit.catalog.fixtures import make_card

CARD = make_card()


@dataclass
class Shelves:
    """A store of adapters, this machine's copies of them, and who sweeps both."""

    home: Path
    project_id: str
    clock: MovableClock
    registry: AdapterRegistry
    removal: AdapterRemoval
    models: TunedModelRepository

    @property
    def blobs(self) -> Blobs:
        return self.registry.blobs

    @property
    def sweeper(self) -> AdapterSweeper:
        return AdapterSweeper(self.removal, self.blobs, self.home / "adapters")

    def bring(self, alpha: int) -> TunedModel:
        folder = write_adapter(self.home / f"in-{alpha}", {**CONFIG, "lora_alpha": alpha})
        model, _ = self.registry.bring(Brought(folder, self.project_id, "o", None, {}), CARD, None)
        self.blobs.get_folder(blob_key_of(str(model.adapter_id)), self.copy(model), ADAPTER_NAMES)
        return model

    def copy(self, model: TunedModel) -> Path:
        return self.home / "adapters" / str(model.adapter_id)

    def is_there(self, model: TunedModel) -> tuple[bool, bool]:
        """Say whether the adapter is stored, and whether there is a copy."""
        stored = self.blobs.keys(blob_key_of(str(model.adapter_id)))
        return len(stored) == len(ADAPTER_NAMES), self.copy(model).exists()


@pytest.fixture
def shelves(database, clock, tmp_path):
    registry = AdapterRegistry(
        open_blobs(Settings(home=tmp_path)),
        AdapterRepository(database, clock),
        TunedModelRepository(database, clock),
        tmp_path / "scratch",
    )
    removal = AdapterRemoval(database, clock)
    project_id = ensure_project(database, clock)
    return Shelves(tmp_path, project_id, clock, registry, removal, registry.tuned_models)


def test_adapter_of_a_deleted_model_is_removed_with_its_copy_and_only_that(shelves):
    gone, refused, kept = (shelves.bring(alpha) for alpha in (1, 2, 3))
    shelves.models.delete(shelves.project_id, gone.id)
    shelves.models.judge(refused.id, state=TunedState.REFUSED, receipt={})
    shelves.sweeper.sweep()
    assert shelves.is_there(gone) == (True, True), "it was written down a moment ago"
    shelves.clock.advance(KEPT_UNUSED_S)
    shelves.sweeper.sweep()
    assert shelves.is_there(gone) == shelves.is_there(refused) == (False, False)
    assert shelves.is_there(kept) == (True, True)
    shelves.clock.advance(2 * REMOVAL_S)
    assert shelves.removal.claim(10) == ()


def test_adapter_stays_while_another_model_has_it_and_comes_back_when_it_is_brought_again(shelves):
    first, second = shelves.bring(1), shelves.bring(1)
    shelves.models.delete(shelves.project_id, first.id)
    shelves.clock.advance(KEPT_UNUSED_S)
    shelves.sweeper.sweep()
    assert shelves.is_there(second) == (True, True)
    shelves.models.delete(shelves.project_id, second.id)
    shelves.clock.advance(REMOVAL_S)
    shelves.sweeper.sweep()
    assert shelves.is_there(second) == (False, False)
    with pytest.raises(Unavailable, match="being removed"):
        shelves.bring(1)
    shelves.clock.advance(REMOVAL_S)
    assert shelves.is_there(shelves.bring(1)) == (True, True)


def test_adapter_that_is_brought_just_now_is_not_taken_away_before_its_model_is_there(shelves):
    old = shelves.bring(1)
    shelves.models.delete(shelves.project_id, old.id)
    shelves.clock.advance(KEPT_UNUSED_S)
    # As the registry does, up to where the model is not yet written down.
    shelves.registry.take(shelves.home / "in-1", CARD.id, base=None)
    shelves.sweeper.sweep()
    assert shelves.is_there(old) == (True, True)


def test_remover_that_died_is_followed_by_another(shelves):
    model = shelves.bring(1)
    shelves.models.delete(shelves.project_id, model.id)
    shelves.clock.advance(KEPT_UNUSED_S)
    assert shelves.removal.claim(10) == (model.adapter_id,)
    shelves.sweeper.sweep()
    assert shelves.is_there(model) == (True, True)
    shelves.clock.advance(REMOVAL_S)
    shelves.sweeper.sweep()
    assert shelves.is_there(model) == (False, False)
