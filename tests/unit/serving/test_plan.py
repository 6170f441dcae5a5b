"""Options, plans and the number of replicas: what is refused, what makes a new engine."""

import pytest

from maas.catalog.catalog import load_catalog
from maas.catalog.machine import Gpu, Machine
from maas.core.errors import ConfigError, DoesNotFit
from maas.serving.options import parse_options
from maas.serving.plan import make_plan
from maas.serving.scaling import num_replicas_for
from maas.store.records import Deployment
from tests.conftest import REPOSITORY

GIB = 2**30
MACHINE = Machine(
    num_cores=2, memory_total_bytes=24 * GIB, memory_available_bytes=20 * GIB, disk_free_bytes=GIB
)


def _deployment(model="smollm2-135m-instruct", engine="vllm", bounds=(1, 1), **options):
    return Deployment(
        id="dep-1",
        project_id="p",
        model_id=model,
        engine=engine,
        options=options,
        min_replicas=bounds[0],
        max_replicas=bounds[1],
        created_at=0.0,
    )


@pytest.fixture(scope="module")
def catalog():
    return load_catalog(REPOSITORY / "models")


def test_plan_of_the_first_model_fits_two_cores(catalog):
    plan = make_plan(_deployment(), catalog["smollm2-135m-instruct"], MACHINE)
    assert plan.spec.device == "cpu"
    assert plan.num_gpus == 0
    assert GIB < plan.memory_bytes < 8 * GIB


def test_scaling_keeps_the_digest_and_options_change_it(catalog):
    card = catalog["smollm2-135m-instruct"]
    plan = make_plan(_deployment(), card, MACHINE)
    scaled = make_plan(_deployment(bounds=(2, 5)), card, MACHINE)
    changed = make_plan(_deployment(max_model_len=1024), card, MACHINE)
    assert plan.digest == scaled.digest != changed.digest
    assert plan.matches(_deployment())
    assert not plan.matches(_deployment(bounds=(2, 5)))


def test_too_large_model_is_refused_with_numbers_and_advice(catalog):
    wanted = _deployment("llama-2-13b-chat")
    with pytest.raises(DoesNotFit, match=r"needs \d+\.\d+ GiB .* of 20\.00 GiB"):
        make_plan(wanted, catalog["llama-2-13b-chat"], MACHINE)
    assert make_plan(wanted, catalog["llama-2-13b-chat"], MACHINE, check_fit=False)


def test_more_ranks_than_gpus_are_refused(catalog):
    machine = Machine(8, 64 * GIB, 60 * GIB, GIB, gpus=(Gpu("one", 80 * GIB),))
    wanted = _deployment("llama-2-7b-chat", tensor_parallel_size=2)
    with pytest.raises(DoesNotFit, match="tensor_parallel_size 2 needs 2 GPUs"):
        make_plan(wanted, catalog["llama-2-7b-chat"], machine)


def test_engine_the_card_does_not_name_is_refused(catalog):
    with pytest.raises(ConfigError, match="vllm"):
        make_plan(_deployment(engine="abacus"), catalog["smollm2-135m-instruct"], MACHINE)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"speed": 11}, "speed"),
        ({"max_model_len": 0}, "max_model_len"),
        ({"url": "ftp://x"}, "url"),
        ({"url": "http://x/path"}, "url"),
        ({"gpu_memory_utilization": 1.5}, "gpu_memory_utilization"),
        ({"max_loras": 2, "max_lora_rank": 7}, "max_lora_rank"),
    ],
)
def test_option_that_makes_no_sense_is_named(options, words):
    with pytest.raises(ConfigError, match=words):
        parse_options(options)


@pytest.mark.parametrize(
    ("ongoing", "current", "wanted"),
    [
        (0, 1, 1),
        (16, 1, 1),
        (17, 1, 2),
        (33, 1, 3),
        (500, 1, 4),
        (31, 2, 2),
        (29, 3, 2),
        (31, 3, 3),
        (1, 3, 1),
    ],
)
def test_replicas_follow_the_load_between_their_bounds(ongoing, current, wanted):
    found = num_replicas_for(
        ongoing=ongoing, target=16, current=current, min_replicas=1, max_replicas=4
    )
    assert found == wanted
