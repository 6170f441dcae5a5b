"""What a replica holds follows what the store wants, whatever fails on the way."""

import asyncio
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from maas.bootstrap.adapters import open_registry
from maas.bootstrap.store import Store, open_store
from maas.core.errors import AdapterRefused, EngineError, EngineUnreachable, NotFound
from maas.core.settings import Settings
from maas.finetune.adapter_files import WEIGHTS_NAME
from maas.finetune.base_modules import BaseModules
from maas.finetune.registry import Brought
from maas.serving.adapters import FIRST_PAUSE_S, UNLOAD_AFTER_S, AdapterKeeper, AdapterShelf
from maas.store.adapters import TunedModel, TunedState
from maas.store.blobs import open_blobs
from maas.store.state import ensure_project
from tests.conftest import MovableClock
from tests.fakes.adapters import CONFIG, SHAPES, adapter_name, write_adapter
from tests.unit.catalog.fixtures import make_card

BASE = BaseModules(dict(SHAPES))
CARD = make_card()


@dataclass
class Engine:
    """Takes adapters as vLLM does; ``refused`` names those it does not."""

    loaded: dict[str, Path] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    refused: set[str] = field(default_factory=set)
    is_away: bool = False

    async def load_adapter(self, client, url, *, adapter_name, adapter_dir) -> None:
        self.calls.append(adapter_name)
        if self.is_away:
            raise EngineUnreachable("away")
        if adapter_name in self.refused:
            raise EngineError("load adapter: 400: rank too large")
        self.loaded[adapter_name] = adapter_dir

    async def unload_adapter(self, client, url, *, adapter_name) -> None:
        self.loaded.pop(adapter_name, None)


@dataclass
class Site:
    """A store with adapters, and a replica's keeper."""

    settings: Settings
    store: Store
    engine: Engine
    clock: MovableClock
    keeper: AdapterKeeper
    project_id: str

    def bring(self, alpha: int, *, state: TunedState = TunedState.PUBLISHED) -> TunedModel:
        folder = self.settings.home / f"in-{alpha}-{time.monotonic_ns()}"
        write_adapter(folder, {**CONFIG, "lora_alpha": alpha})
        brought = Brought(folder, self.project_id, "default", None, {"source": "test"})
        model, _ = open_registry(self.settings, self.store).bring(brought, CARD, BASE)
        if state is not TunedState.CANDIDATE:
            self.store.tuned_models.judge(model.id, state=state, receipt={})
        return model

    def keep(self, passes: int = 1) -> list[bool]:
        return [asyncio.run(self.keeper.keep(None, "http://engine")) for _ in range(passes)]

    def folder(self, model: TunedModel) -> Path:
        return self.settings.adapters_dir / str(model.adapter_id)


def keeper_of(settings: Settings, store: Store, engine: Engine, clock: MovableClock, **kwargs):
    return AdapterKeeper(
        CARD.id,
        engine=engine,
        adapters=store.adapters,
        shelf=AdapterShelf(open_blobs(settings), settings.adapters_dir, base=BASE, max_rank=16),
        revision=store.state.revision,
        on_held=lambda adapter_id: store.tuned_models.publish_loaded(adapter_id, loaded_by="r"),
        clock=clock.now,
        **kwargs,
    )


@pytest.fixture
def site(tmp_path: Path, clock: MovableClock):
    settings = Settings(home=tmp_path).resolved()
    store, engine = open_store(settings), Engine()
    project_id = ensure_project(store.database, store.clock)
    keeper = keeper_of(settings, store, engine, clock)
    yield Site(settings, store, engine, clock, keeper, project_id)
    store.database.close()


def test_wanted_adapters_are_fetched_checked_and_loaded_under_their_content(site):
    first, second = site.bring(1), site.bring(2)
    assert site.keep(3) == [True, True, False]
    assert set(site.keeper.held) == {adapter_name(first), adapter_name(second)}
    assert site.engine.loaded[adapter_name(first)] == site.folder(first)
    assert not site.keeper.is_behind


def test_newest_comes_first_as_somebody_waits_for_it(site):
    site.bring(1)
    site.clock.advance(1)
    time.sleep(0.01)
    newest = site.bring(2)
    site.keep()
    assert site.keeper.held == (adapter_name(newest),)


def test_candidates_are_held_too_and_refused_ones_are_not(site):
    site.bring(1, state=TunedState.REFUSED)
    candidate = site.bring(2, state=TunedState.CANDIDATE)
    site.keep(3)
    assert site.keeper.held == (adapter_name(candidate),)


def test_what_was_brought_is_published_once_an_engine_holds_it(site):
    model = site.bring(1, state=TunedState.CANDIDATE)
    site.keep()
    assert site.store.tuned_models.find(model.id).state is TunedState.CANDIDATE
    site.keep(2)
    found = site.store.tuned_models.find(model.id)
    assert found.state is TunedState.PUBLISHED
    assert found.receipt == {"kind": "loaded", "replica": "r"}
    # The same content under a second name: nothing is loaded, and it is published all the same.
    again = site.bring(1, state=TunedState.CANDIDATE)
    site.keep(2)
    assert site.store.tuned_models.find(again.id).state is TunedState.PUBLISHED
    assert len(site.engine.calls) == 1


def test_nothing_is_read_but_the_revision_while_nothing_changes(site, monkeypatch):
    site.bring(1)
    site.keep(3)
    monkeypatch.setattr(site.store.adapters, "wanted", None)
    assert site.keep(5) == [False] * 5


def test_deleted_one_leaves_the_lease_first_and_the_engine_later(site):
    model = site.bring(1)
    site.keep(2)
    site.store.tuned_models.delete(site.project_id, model.id)
    assert site.keep() == [True]
    assert site.keeper.held == ()
    assert site.engine.loaded
    assert site.folder(model).is_dir()
    site.clock.advance(UNLOAD_AFTER_S)
    site.keep()
    assert not site.engine.loaded
    assert not site.folder(model).exists()


def test_copy_stays_while_a_model_of_another_base_has_the_same_adapter(site):
    model = site.bring(1)
    other = replace(model, id=f"{model.id}-other", base_model_id="another-base")
    site.store.tuned_models.add(other)
    site.keep(2)
    site.store.tuned_models.delete(site.project_id, model.id)
    site.keep()
    site.clock.advance(UNLOAD_AFTER_S)
    site.keep()
    assert not site.engine.loaded
    assert site.folder(model).is_dir()


def test_one_that_is_wanted_again_before_it_was_gone_stays(site):
    model = site.bring(1)
    site.keep(2)
    site.store.tuned_models.delete(site.project_id, model.id)
    site.keep()
    again = site.bring(1)
    site.keep(2)
    site.clock.advance(UNLOAD_AFTER_S)
    site.keep(2)
    assert adapter_name(again) in site.keeper.held
    assert adapter_name(again) in site.engine.loaded


def test_one_that_the_engine_refuses_stops_no_other_is_told_and_waits_longer_each_time(site):
    bad, good = site.bring(1), site.bring(2)
    site.engine.refused = {adapter_name(bad)}
    site.keep(4)
    assert site.keeper.held == (adapter_name(good),)
    assert site.store.adapters.get(str(bad.adapter_id)).problem.endswith("rank too large")
    assert site.engine.calls.count(adapter_name(bad)) == 1
    for pause in (FIRST_PAUSE_S, 2 * FIRST_PAUSE_S):
        num_calls = len(site.engine.calls)
        site.clock.advance(pause - 0.01)
        site.keep()
        assert len(site.engine.calls) == num_calls
        site.clock.advance(0.01)
        site.keep()
        assert len(site.engine.calls) == num_calls + 1
    site.engine.refused = set()
    site.clock.advance(100)
    site.keep()
    assert adapter_name(bad) in site.keeper.held
    assert site.store.adapters.get(str(bad.adapter_id)).problem is None


def test_engine_that_is_away_is_no_problem_of_the_adapter(site):
    model = site.bring(1)
    site.engine.is_away = True
    site.keep()
    assert site.store.adapters.get(str(model.adapter_id)).problem is None
    site.engine.is_away = False
    site.clock.advance(FIRST_PAUSE_S)
    assert site.keep() == [True]


def test_engine_that_starts_again_gets_all_of_them_again(site):
    models = [site.bring(alpha) for alpha in (1, 2, 3)]
    site.keep(3)
    engine = Engine()
    site.keeper = keeper_of(site.settings, site.store, engine, site.clock)
    site.keep(3)
    assert set(engine.loaded) == {adapter_name(model) for model in models}


def test_damaged_copy_is_fetched_again(site):
    model = site.bring(1)
    folder = site.settings.adapters_dir / str(model.adapter_id)
    write_adapter(folder, {**CONFIG, "lora_alpha": 99})
    site.keep()
    assert adapter_name(model) in site.keeper.held
    assert (folder / WEIGHTS_NAME).exists()


def test_stored_adapter_of_another_content_is_never_loaded(site):
    model = site.bring(1)
    stored = site.settings.home / "blobs" / "adapters" / str(model.adapter_id)
    write_adapter(stored, {**CONFIG, "lora_alpha": 99})
    site.keep()
    assert site.engine.calls == []
    assert "damaged" in site.store.adapters.get(str(model.adapter_id)).problem


def test_adapter_whose_files_are_gone_is_told(site):
    model = site.bring(1)
    open_blobs(site.settings).delete(f"adapters/{model.adapter_id}")
    site.keep()
    assert "no blob" in site.store.adapters.get(str(model.adapter_id)).problem
    with pytest.raises(NotFound):
        site.keeper.shelf.fetch(str(model.adapter_id))


def test_rank_above_the_engines_is_refused_before_the_engine_sees_it(site):
    model = site.bring(1)
    site.keeper.shelf = AdapterShelf(
        open_blobs(site.settings), site.settings.adapters_dir, base=BASE, max_rank=1
    )
    site.keep()
    assert site.engine.calls == []
    assert "max_lora_rank" in site.store.adapters.get(str(model.adapter_id)).problem


def test_half_a_copy_is_never_seen(site, monkeypatch):
    model = site.bring(1)
    blobs = open_blobs(site.settings)
    download, seen = blobs.download, []

    def dying(key, path):
        seen.append(key)
        if len(seen) == 2:
            raise NotFound("gone half way")
        download(key, path)

    monkeypatch.setattr(blobs, "download", dying)
    shelf = AdapterShelf(blobs, site.settings.adapters_dir, base=BASE, max_rank=16)
    with pytest.raises(NotFound):
        shelf.fetch(str(model.adapter_id))
    assert not site.folder(model).exists()
    assert shelf.fetch(str(model.adapter_id)) == site.folder(model)


def test_wrong_base_is_refused_when_it_is_brought(site):
    folder = write_adapter(site.settings.home / "x")
    other = BaseModules({"model.layers.0.self_attn.q_proj": (8, 9)})
    brought = Brought(folder, site.project_id, "default", None, {})
    with pytest.raises(AdapterRefused, match="another model"):
        open_registry(site.settings, site.store).bring(brought, CARD, other)
    assert site.store.tuned_models.list() == ()
