"""Options and plans: what is refused, what makes a new engine."""

from dataclasses import replace

import pytest

from maas.catalog.catalog import load_catalog
from maas.catalog.machine import Gpu, Machine
from maas.core.errors import ConfigError, DoesNotFit
from maas.serving.options import parse_options
from maas.serving.plan import make_plan, size_up
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
    assert make_plan(wanted, catalog["llama-2-13b-chat"], MACHINE, num_to_fit=0)


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


def test_all_replicas_asked_for_must_fit_and_the_refusal_says_how_many_do(catalog):
    card = catalog["smollm2-135m-instruct"]
    each = make_plan(_deployment(), card, MACHINE).memory_bytes
    room = replace(MACHINE, memory_available_bytes=3 * each + GIB // 2)
    assert make_plan(_deployment(bounds=(1, 3)), card, room, num_to_fit=3)
    with pytest.raises(DoesNotFit, match=r"4 replicas .* needs \d\.\d+ GiB of .* 3 would fit"):
        make_plan(_deployment(bounds=(1, 4)), card, room, num_to_fit=4)
    # Two of the four run already: what they hold is not in what is free.
    assert make_plan(_deployment(bounds=(1, 4)), card, room, num_to_fit=4, held_bytes=2 * each)


def test_each_replica_takes_gpus_of_its_own(catalog):
    machine = replace(MACHINE, gpus=(Gpu("one", 80 * GIB), Gpu("two", 80 * GIB)))
    card = catalog["llama-2-7b-chat"]
    wanted = _deployment("llama-2-7b-chat", bounds=(1, 3))
    assert make_plan(wanted, card, machine, num_to_fit=2)
    with pytest.raises(DoesNotFit, match=r"each takes 1 of the 2 GPUs; 2 would fit"):
        make_plan(wanted, card, machine, num_to_fit=3)


def test_gpu_needs_room_for_one_full_sequence_and_not_for_a_whole_batch(catalog):
    machine = replace(MACHINE, gpus=(Gpu("one", 24 * GIB),))
    _, fit = size_up(catalog["llama-2-7b-chat"], machine, parse_options({}), engine="vllm")
    assert fit.kv_bytes == fit.kv_bytes_per_token * fit.max_model_len
    assert fit.full_kv_bytes == fit.kv_bytes * fit.max_num_seqs > 24 * GIB
    assert fit.fits


def test_check_counts_what_a_start_takes(catalog):
    card = catalog["smollm2-135m-instruct"]
    options = {"max_model_len": 1024, "max_num_seqs": 4}
    tuning, fit = size_up(card, MACHINE, parse_options(options), engine="vllm")
    plan = make_plan(_deployment(**options), card, MACHINE)
    assert (fit.total_bytes, fit.kv_bytes) == (plan.memory_bytes, plan.spec.kv_cache_bytes)
    assert tuning.spec == plan.spec


@pytest.mark.parametrize("engine", ["vllm", "transformers"])
def test_variant_with_its_own_weights_is_planned_by_them(catalog, engine):
    machine = replace(MACHINE, gpus=(Gpu("one", 80 * GIB),))
    card = catalog["qwen3-8b"]
    plain = make_plan(_deployment("qwen3-8b", engine), card, machine)
    awq = make_plan(_deployment("qwen3-8b", engine, quantization="awq"), card, machine)
    assert awq.card.source == (card.variant("awq").source,)
    # Its own config says how it is quantised; the engine is told nothing.
    assert (awq.quantization, awq.spec.quantization) == ("awq", None)
    assert awq.digest != plain.digest


def test_quantised_weights_are_smaller_and_computed_in_bfloat16_on_processors(catalog):
    card = catalog["qwen3-8b"]
    tuning, fit = size_up(card, MACHINE, parse_options({"quantization": "awq"}), engine="vllm")
    _, plain = size_up(card, MACHINE, parse_options({}), engine="vllm")
    assert fit.weights_bytes < plain.weights_bytes / 3
    assert tuning.spec.dtype == "bfloat16"


def test_quantisation_is_what_the_card_has_or_the_engine_makes(catalog):
    machine = replace(MACHINE, gpus=(Gpu("one", 80 * GIB),))
    card = catalog["llama-2-7b-chat"]
    made = make_plan(_deployment(card.id, quantization="fp8"), card, machine)
    assert made.spec.quantization == "fp8"
    assert made.card.source == card.source
    with pytest.raises(ConfigError, match=r"'gptq'.* for engine vllm; there are: awq, fp8"):
        make_plan(_deployment(card.id, quantization="gptq"), card, machine)
    with pytest.raises(ConfigError, match=r"'fp8'.* for engine transformers; there are: awq"):
        make_plan(_deployment(card.id, "transformers", quantization="fp8"), card, machine)


def test_fp8_is_refused_where_it_would_crash(catalog):
    card = catalog["qwen3-8b"]
    with pytest.raises(ConfigError, match="'fp8' needs a GPU"):
        make_plan(_deployment(card.id, quantization="fp8"), card, MACHINE)


def test_engine_that_does_not_report_its_load_is_not_scaled_by_it(catalog):
    card = catalog["smollm2-135m-instruct"]
    with pytest.raises(ConfigError, match="does not report its load"):
        make_plan(_deployment(engine="transformers", bounds=(1, 2)), card, MACHINE)
    assert make_plan(_deployment(engine="transformers", bounds=(2, 2)), card, MACHINE)


def test_room_for_adapters_is_counted_and_can_be_given_up(catalog):
    card = catalog["smollm2-135m-instruct"]
    _, fit = size_up(card, MACHINE, parse_options({}), engine="vllm")
    _, without = size_up(card, MACHINE, parse_options({"max_loras": 0}), engine="vllm")
    # At rank 8 PEFT's own adapter of all linear layers has 2,442,240 numbers.
    each = 2_442_240 * 2 * 4
    assert fit.adapters_bytes == pytest.approx(24 * each, rel=0.02)
    assert fit.total_bytes - without.total_bytes == fit.adapters_bytes
    assert without.adapters_bytes == 0
    small = replace(MACHINE, memory_available_bytes=without.total_bytes)
    _, refused = size_up(card, small, parse_options({}), engine="vllm")
    assert any("max_loras to 0" in line for line in refused.advice)
