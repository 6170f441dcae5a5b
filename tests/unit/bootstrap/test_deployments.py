"""Making and scaling deployments: what does not fit is refused before it is written."""

from dataclasses import replace

import pytest

from maas.bootstrap import deployments as wiring
from maas.bootstrap.deployments import create_deployment, default_engine, scale_deployment
from maas.bootstrap.store import open_store
from maas.catalog.catalog import load_catalog
from maas.catalog.machine import Gpu, Machine
from maas.core.errors import ConfigError, DoesNotFit, NotFound
from maas.core.settings import Settings
from maas.serving.plan import make_plan
from maas.store.records import Deployment, Replica, ReplicaState

GIB = 2**30
MODEL = "smollm2-135m-instruct"
MACHINE = Machine(
    num_cores=2, memory_total_bytes=24 * GIB, memory_available_bytes=20 * GIB, disk_free_bytes=GIB
)


@pytest.fixture
def settings(tmp_path, empty_store_url):
    return Settings(home=tmp_path, database_url=empty_store_url)


@pytest.fixture
def store(settings):
    store = open_store(settings)
    yield store
    store.database.close()


@pytest.fixture
def machine(monkeypatch):
    """Let a test say how much memory is free."""

    def set_free(available_bytes: int) -> None:
        machine = replace(MACHINE, memory_available_bytes=available_bytes)
        monkeypatch.setattr(wiring, "probe_machine", lambda _: machine)

    set_free(20 * GIB)
    return set_free


def _create(settings, store, *replicas: int):
    return create_deployment(
        settings,
        store,
        model_id=MODEL,
        engine=None,
        options={"kv_cache_bytes": GIB, "max_loras": 0},
        replicas=replicas,
    )


def _scale(settings, store, made, *bounds: int):
    return scale_deployment(
        settings, store, made.id, min_replicas=bounds[0], max_replicas=bounds[1]
    )


def _run(store, made, *, name: str, memory_bytes: int) -> None:
    store.replicas.publish(
        Replica(
            id=f"{made.id}-{name}",
            deployment_id=made.id,
            url="http://127.0.0.1:1",
            engine_model=MODEL,
            state=ReplicaState.READY,
            started_at=0.0,
            expires_at=store.clock.now() + 60,
            memory_bytes=memory_bytes,
        )
    )


def test_most_replicas_must_fit_when_a_deployment_is_made(settings, store, machine):
    with pytest.raises(DoesNotFit, match=r"9 replicas do not fit .* 6 would fit"):
        _create(settings, store, 1, 9)
    assert store.deployments.list() == ()
    assert _create(settings, store, 1, 6).max_replicas == 6


@pytest.mark.parametrize("bounds", [(9, 9), (1, 9)])
def test_scaling_beyond_what_fits_is_refused_and_changes_nothing(settings, store, machine, bounds):
    made = _create(settings, store, 1, 1)
    with pytest.raises(DoesNotFit, match=r"9 replicas do not fit .* 6 would fit"):
        _scale(settings, store, made, *bounds)
    assert store.deployments.get(made.id) == made
    assert _scale(settings, store, made, 2, 6).max_replicas == 6


def test_memory_that_running_replicas_hold_counts_for_them(settings, store, machine):
    made = _create(settings, store, 1, 1)
    machine(4 * GIB)
    with pytest.raises(DoesNotFit, match="1 would fit"):
        _scale(settings, store, made, 2, 2)
    _run(store, made, name="a", memory_bytes=3 * GIB)
    assert _scale(settings, store, made, 2, 2).min_replicas == 2


def test_asking_for_fewer_is_never_refused(settings, store, machine):
    made = _create(settings, store, 4, 4)
    machine(GIB // 4)
    assert _scale(settings, store, made, 1, 2).max_replicas == 2
    with pytest.raises(DoesNotFit):
        _scale(settings, store, made, 2, 2)


def test_bounds_that_make_no_sense_are_refused_before_any_memory_is_counted(
    settings, store, machine
):
    made = _create(settings, store, 1, 1)
    with pytest.raises(ConfigError, match="want 1 <= min <= max"):
        _scale(settings, store, made, 3, 2)
    with pytest.raises(NotFound):
        scale_deployment(settings, store, "dep-none", min_replicas=1, max_replicas=1)


def test_existing_cluster_is_left_to_judge_the_room(store, settings, machine):
    elsewhere = settings.model_copy(
        update={"serving": settings.serving.model_copy(update={"ray_address": "host:6379"})}
    )
    made = _create(elsewhere, store, 1, 1)
    assert _scale(elsewhere, store, made, 1, 100).max_replicas == 100


@pytest.mark.parametrize(
    ("model", "gpus", "engine"),
    [
        ("smollm2-135m-instruct", (), "onnx"),
        ("smollm2-135m-instruct", (Gpu("A100", 40 << 30),), "vllm"),
        ("qwen3-8b", (), "vllm"),
    ],
)
def test_onnx_is_the_default_without_a_gpu_where_the_card_names_it(model, gpus, engine):
    card = load_catalog(Settings().models_dir).get_card(model)
    assert default_engine(card, Machine(2, 2**36, 2**36, 2**40, gpus)) == engine


def test_onnx_runs_no_model_whose_graph_nobody_has_proved():
    card = load_catalog(Settings().models_dir).get_card(MODEL)
    olmo = card.model_copy(update={"architecture": "OlmoForCausalLM", "engines": ("vllm", "onnx")})
    assert default_engine(olmo, MACHINE) == "vllm"
    wanted = Deployment("new", "", olmo.id, "onnx", {}, 1, 1, 0.0)
    with pytest.raises(ConfigError, match=r"'onnx' runs no OlmoForCausalLM; it runs .*Llama"):
        make_plan(wanted, olmo, MACHINE)
