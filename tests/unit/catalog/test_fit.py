"""The estimate, against numbers worked out by hand."""

import pytest

from maas.catalog.fit import GPU_OVERHEAD_BYTES, estimate_fit
from maas.core.errors import ConfigError
from tests.unit.catalog.fixtures import GIB, make_card, make_machine


def _shape(**changes: int) -> dict[str, int]:
    return {**make_card().shape.model_dump(), **changes}


def test_llama_2_7b_takes_half_a_mebibyte_a_token() -> None:
    report = estimate_fit(make_card(), make_machine(80), max_num_seqs=4)
    assert report.kv_bytes_per_token == 2 * 32 * 32 * 128 * 2 == 512 * 1024
    assert report.kv_bytes == 8 * GIB
    assert report.weights_bytes == 2 * 6_738_415_616
    assert report.total_bytes == report.weights_bytes + 8 * GIB + GPU_OVERHEAD_BYTES
    assert report.available_bytes == int(80 * GIB * 0.9)
    assert report.fits


def test_grouped_heads_shrink_the_cache() -> None:
    report = estimate_fit(make_card(shape=_shape(num_kv_heads=8)), make_machine(80))
    assert report.kv_bytes_per_token == 128 * 1024


def test_recurrent_state_does_not_grow_with_length() -> None:
    card = make_card(shape=_shape(num_kv_heads=0, state_bytes_per_sequence=1000))
    short = estimate_fit(card, make_machine(80), max_model_len=16, max_num_seqs=4)
    long = estimate_fit(card, make_machine(80), max_model_len=4096, max_num_seqs=4)
    assert short.kv_bytes == long.kv_bytes == 4000


def test_embedding_has_no_cache() -> None:
    assert estimate_fit(make_card(task="embed"), make_machine(80)).kv_bytes == 0


def test_quantised_variant_uses_the_card_s_bits() -> None:
    card = make_card(variants=[{"name": "odd", "bits_per_weight": 4}])
    report = estimate_fit(card, make_machine(80), quantization="odd")
    assert report.weights_bytes == 6_738_415_616 // 2


def test_advice_when_followed_makes_it_fit() -> None:
    card, machine = make_card(), make_machine(24)
    report = estimate_fit(card, machine)
    assert not report.fits
    num_seqs = next(a for a in report.advice if a.startswith("set max_num_seqs"))
    length = next(a for a in report.advice if a.startswith("set max_model_len"))
    assert estimate_fit(card, machine, max_num_seqs=int(num_seqs.split()[-1])).fits
    assert estimate_fit(card, machine, max_model_len=int(length.split()[-1])).fits


def test_advice_on_gpus_when_followed_makes_it_fit() -> None:
    card, machine = make_card(), make_machine(16, 16, 16, 16)
    report = estimate_fit(card, machine, max_num_seqs=8)
    assert "set tensor_parallel_size to 4" in report.advice
    assert estimate_fit(card, machine, max_num_seqs=8, tensor_parallel_size=4).fits


def test_too_few_gpus_are_said_so() -> None:
    report = estimate_fit(make_card(), make_machine(16), max_num_seqs=8)
    assert any("fewer here" in line for line in report.advice)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "ranks", "said"),
    [(9, 3, 2, "9 attention heads"), (12, 3, 4, "3 KV heads"), (32, 8, 16, "and there are 8")],
)
def test_ranks_that_cannot_be_are_refused(heads: int, kv_heads: int, ranks: int, said: str) -> None:
    card = make_card(shape=_shape(num_attention_heads=heads, num_kv_heads=kv_heads))
    report = estimate_fit(card, make_machine(*[80] * 8), tensor_parallel_size=ranks)
    assert not report.fits
    assert said in report.reason
    assert report.advice


def test_ranks_beyond_kv_heads_hold_copies() -> None:
    card = make_card(shape=_shape(num_kv_heads=2))
    machine = make_machine(*[80] * 8)
    one = estimate_fit(card, machine, tensor_parallel_size=2)
    copied = estimate_fit(card, machine, tensor_parallel_size=8)
    assert copied.kv_bytes == 4 * one.kv_bytes


def test_without_gpus_memory_counts() -> None:
    report = estimate_fit(make_card(), make_machine(memory_gib=20), max_num_seqs=1)
    assert report.available_bytes == 20 * GIB
    assert report.fits


def test_unknown_dtype_is_refused() -> None:
    with pytest.raises(ConfigError, match="float8"):
        estimate_fit(make_card(), make_machine(80), dtype="float8")


def test_cache_that_was_set_is_what_counts() -> None:
    card, machine = make_card(), make_machine(memory_gib=20)
    assert estimate_fit(card, machine, kv_cache_bytes=GIB).fits
    report = estimate_fit(card, machine, kv_cache_bytes=9 * GIB)
    assert not report.fits
    size = next(a for a in report.advice if a.startswith("set kv_cache_bytes to")).split()[3]
    assert estimate_fit(card, machine, kv_cache_bytes=int(size)).fits
