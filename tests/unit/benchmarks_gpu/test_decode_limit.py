"""The roofline's arithmetic, against sizes that are published and cases worked by hand."""

import pytest

from benchmarks.gpu.decode_limit import (
    MachineLimits,
    decode_limit_tokens_s,
    step_bytes,
    step_flops,
)
from benchmarks.gpu.shapes import SHAPES, ModelShape

# Two layers of width 4, one head, MLP of 8, 10 words: 2 * (4 * 16 + 3 * 32) + 40 = 360 weights.
TINY = ModelShape("tiny", 2, 4, 8, 1, 1, 10)


def limits(*, bandwidth: float, flops: float) -> MachineLimits:
    return MachineLimits("a machine", 80 * 2**30, bandwidth, flops, "2.13")


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("llama2-7b", 6_738_415_616),
        ("llama2-13b", 13_015_864_320),
        ("llama3-8b", 8_030_261_248),
        ("smollm2-135m", 134_515_008),
    ],
)
def test_shapes_have_the_published_number_of_parameters(name: str, parameters: int) -> None:
    assert SHAPES[name].parameters == parameters


def test_kv_cache_of_llama2_7b_is_half_a_mebibyte_a_token_and_grouped_heads_cut_it() -> None:
    assert SHAPES["llama2-7b"].kv_bytes_per_token == 2**19
    assert SHAPES["llama3-8b"].kv_bytes_per_token == 2**17


def test_a_step_reads_matmul_weights_once_and_every_streams_cache() -> None:
    assert TINY.matmul_parameters == 360
    assert TINY.kv_bytes_per_token == 32
    assert step_bytes(TINY, num_streams=1, mean_context=0) == 720
    assert step_bytes(TINY, num_streams=3, mean_context=10) == 720 + 3 * 10 * 32


def test_a_step_computes_two_operations_a_weight_plus_attention() -> None:
    assert step_flops(TINY, num_streams=1, mean_context=0) == 720
    # Scores and sums: 2 operations each, per layer, head, width and token of context.
    assert step_flops(TINY, num_streams=2, mean_context=5) == 2 * (720 + 4 * 2 * 1 * 4 * 5)


def test_one_stream_is_bound_by_memory() -> None:
    machine = limits(bandwidth=7200.0, flops=1e12)
    assert decode_limit_tokens_s(TINY, machine, num_streams=1, mean_context=0) == 10.0


def test_many_streams_are_bound_by_the_matmul_rate() -> None:
    machine = limits(bandwidth=1e12, flops=7200.0)
    assert decode_limit_tokens_s(TINY, machine, num_streams=64, mean_context=0) == pytest.approx(10)


def test_longer_context_lowers_the_limit() -> None:
    machine = limits(bandwidth=3e12, flops=7e14)
    shape = SHAPES["llama2-7b"]
    short = decode_limit_tokens_s(shape, machine, num_streams=64, mean_context=128)
    long = decode_limit_tokens_s(shape, machine, num_streams=64, mean_context=1024)
    assert long < short / 2
