from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from maas.catalog.card import ModelCard
from maas.catalog.machine import Gpu, Machine
from maas.engines.tuning import share_cpus, tune

GIB = 2**30
CARD = ModelCard.model_validate(
    {
        "id": "small",
        "family": "llama",
        "architecture": "LlamaForCausalLM",
        "parameters": 135_000_000,
        "context": 8192,
        "modality": ["text"],
        "languages": ["en"],
        "licence": {"name": "Apache-2.0", "grade": "commercial"},
        "origin": "somebody",
        "source": ["file:///weights"],
        "shape": {
            "num_layers": 30,
            "hidden_size": 576,
            "num_attention_heads": 9,
            "num_kv_heads": 3,
            "head_dim": 64,
            "vocab_size": 49152,
        },
        "engines": ["vllm"],
    }
)
MACHINE = Machine(
    num_cores=2,
    memory_total_bytes=24 * GIB,
    memory_available_bytes=20 * GIB,
    disk_free_bytes=GIB,
    cpu_flags=frozenset({"avx512_bf16"}),
)


@dataclass(frozen=True)
class Options:
    dtype: str | None = None
    quantization: str | None = None
    max_model_len: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    kv_cache_bytes: int | None = None
    gpu_memory_utilization: float = 0.9
    tensor_parallel_size: int = 1
    max_loras: int | None = None
    max_cpu_loras: int | None = None
    max_lora_rank: int = 16
    extra_engine_args: tuple[str, ...] = ()


def test_small_model_on_two_cores():
    spec = tune(CARD, MACHINE, Options()).spec
    per_token = 2 * 30 * 3 * 64 * 4
    assert (spec.device, spec.dtype) == ("cpu", "float32")
    assert (spec.max_model_len, spec.max_num_seqs) == (8192, 32)
    assert spec.kv_cache_bytes == 32 * 2048 * per_token
    assert spec.max_num_batched_tokens == 1024


LARGER = CARD.model_copy(update={"parameters": 6_000_000_000})


def test_larger_model_computes_in_bfloat16_where_the_processor_has_it():
    assert tune(LARGER, MACHINE, Options()).spec.dtype == "bfloat16"


def test_processor_without_bf16_computes_in_float32():
    spec = tune(LARGER, replace(MACHINE, cpu_flags=frozenset({"avx2"})), Options()).spec
    assert spec.dtype == "float32"


def test_large_model_takes_small_steps_and_a_shorter_context():
    card = CARD.model_copy(
        update={
            "parameters": 13_000_000_000,
            "context": 131_072,
            "shape": CARD.shape.model_copy(update={"num_layers": 40, "num_kv_heads": 40}),
        }
    )
    tuning = tune(card, MACHINE, Options())
    assert tuning.spec.max_num_batched_tokens == 256
    per_token = 2 * 40 * 40 * 64 * 2
    assert tuning.max_model_len <= 6 * GIB // per_token
    assert per_token * tuning.max_model_len <= tuning.spec.kv_cache_bytes <= 6 * GIB


def test_embedding_model_reads_its_whole_input_in_one_step():
    card = CARD.model_copy(update={"task": "embed", "parameters": 7_000_000_000})
    spec = tune(card, MACHINE, Options()).spec
    assert spec.max_num_batched_tokens == card.context
    assert spec.kv_cache_bytes == 64 * 2**20


def test_what_the_operator_says_wins():
    options = Options(
        dtype="float32",
        max_model_len=512,
        max_num_seqs=4,
        max_num_batched_tokens=1024,
        kv_cache_bytes=GIB,
        extra_engine_args=("--seed", "1"),
    )
    spec = tune(CARD, MACHINE, options).spec
    assert (spec.dtype, spec.max_model_len, spec.max_num_seqs) == ("float32", 512, 4)
    assert (spec.max_num_batched_tokens, spec.kv_cache_bytes) == (1024, GIB)
    assert spec.extra_engine_args == ("--seed", "1")


def test_gpu_leaves_memory_and_step_to_the_engine():
    machine = replace(MACHINE, gpus=(Gpu("H100", 80 * GIB),))
    spec = tune(CARD, machine, Options()).spec
    assert (spec.device, spec.dtype) == ("cuda", "auto")
    assert spec.kv_cache_bytes is None
    assert spec.max_num_batched_tokens is None


def test_free_memory_does_not_change_the_plan():
    busy = replace(MACHINE, memory_available_bytes=GIB)
    assert tune(CARD, busy, Options()) == tune(CARD, MACHINE, Options())
    assert tune(CARD, MACHINE, Options()).spec.model_dir == Path()


@pytest.mark.parametrize(
    ("num_replicas", "shares"),
    [(1, [(4, 5, 6, 7, 8)]), (2, [(4, 5), (6, 7, 8)]), (9, [(4,), (5,)])],
)
def test_processors_are_shared_without_overlap_while_there_are_enough(num_replicas, shares):
    given = [share_cpus((4, 5, 6, 7, 8), index=i, num_replicas=num_replicas) for i in range(9)]
    assert given[: len(shares)] == shares


def adapters(card=CARD, machine=MACHINE, **options) -> tuple[int, int]:
    spec = tune(card, machine, Options(**options), engine="vllm").spec
    return spec.max_loras, spec.max_cpu_loras


def test_engine_that_takes_adapters_is_ready_for_them_from_the_start():
    assert adapters() == (8, 16)
    assert tune(CARD, MACHINE, Options(), engine="transformers").spec.max_loras == 0
    assert adapters(CARD.model_copy(update={"architecture": "GPTJForCausalLM"})) == (0, 0)
    assert adapters(CARD.model_copy(update={"task": "embed"})) == (0, 0)


def test_small_machine_mixes_fewer_adapters_and_at_least_one():
    assert 1 <= adapters(machine=replace(MACHINE, memory_total_bytes=8 * GIB))[0] < 8
    assert adapters(machine=replace(MACHINE, memory_total_bytes=GIB))[0] == 1


def test_operator_says_how_many_adapters_or_none():
    assert adapters(max_loras=0) == (0, 0)
    assert adapters(max_loras=3) == (3, 6)
    assert adapters(max_loras=3, max_cpu_loras=4) == (3, 4)
