"""Rows, ratios and the sizes that are run."""

import json
from pathlib import Path

import pytest

from benchmarks.gpu.decode_limit import MachineLimits
from benchmarks.gpu.engine import KvCache, check_engine_args, kv_cache_of
from benchmarks.gpu.load import Target, WaveResult
from benchmarks.gpu.lora_serving import lora_table, targets_of
from benchmarks.gpu.report import make_row, paired_ratio, save, table
from benchmarks.gpu.serving import batch_sizes, parse_arguments, run
from benchmarks.gpu.shapes import SHAPES
from maas.core.errors import ConfigError

LIMITS = MachineLimits("a machine", 80 * 2**30, 3e12, 7e14, "2.13")


def wave(output: float, *, decode: float | None = 50.0, cpu: float = 0.1) -> WaveResult:
    return WaveResult(decode, 256.0, output, 0.1, 2.0, cpu)


def test_a_row_takes_medians_and_divides_by_the_roofline() -> None:
    waves = [wave(1, decode=10.0), wave(2, decode=40.0), wave(3, decode=20.0)]
    row = make_row(SHAPES["llama2-7b"], LIMITS, waves, server="vllm", num_streams=1)
    # (13.2 GB + 256 tokens of 512 KiB) at 3 TB/s.
    assert row.limit_tokens_s == pytest.approx(224.8, rel=0.01)
    assert row.share == pytest.approx(20.0 / row.limit_tokens_s)
    assert row.output_tokens_s == 2
    assert row.spread == 4.0


def test_a_row_without_a_decode_window_shows_a_dash_not_a_zero() -> None:
    row = make_row(
        SHAPES["llama2-7b"], LIMITS, [wave(9, decode=None)], server="vllm", num_streams=1
    )
    assert row.share is None
    assert "| 1 | vllm | - |" in table([row], {})


def test_the_ratio_compares_round_with_round() -> None:
    ours, theirs = [wave(99), wave(10), wave(48)], [wave(100), wave(100), wave(50)]
    assert paired_ratio(ours, theirs) == pytest.approx(0.96)


def test_the_ratio_stands_in_the_platforms_row_only() -> None:
    rows = [
        make_row(SHAPES["llama2-7b"], LIMITS, [wave(100)], server=name, num_streams=8)
        for name in ("vllm", "platform")
    ]
    lines = table(rows, {8: 0.98}).splitlines()
    assert "98.0%" not in lines[2]
    assert "98.0%" in lines[3]


def test_a_row_says_when_its_client_was_the_limit() -> None:
    waves = [wave(100, cpu=0.95)]
    row = make_row(SHAPES["llama2-7b"], LIMITS, waves, server="vllm", num_streams=8)
    assert "95% (limits)" in table([row], {})


def test_sizes_that_do_not_fit_give_way_to_the_largest_that_does() -> None:
    assert batch_sizes([1, 64, 128, 256], fit=140) == [1, 64, 128, 140]
    assert batch_sizes([1, 64, 128], fit=128) == [1, 64, 128]
    assert batch_sizes([1, 64, 128, 256], fit=128) == [1, 64, 128]
    assert batch_sizes([1], fit=0) == []


def test_streams_take_whole_blocks_and_one_block_is_vllms_own() -> None:
    # 16 blocks of 128: with one kept back, 15 streams of 128 fit, and 7 of 129.
    cache = KvCache(num_blocks=16, block_size=128)
    assert cache.streams_that_fit(128) == 15
    assert cache.streams_that_fit(129) == 7


def test_capacity_is_read_from_the_metrics_page() -> None:
    page = 'x 1\nvllm:cache_config_info{block_size="16",engine="0",num_gpu_blocks="100"} 1.0\n'
    assert kv_cache_of(page) == KvCache(num_blocks=100, block_size=16)


@pytest.mark.parametrize(
    "page", ["", 'vllm:cache_config_info{block_size="16",num_gpu_blocks="None"} 1.0']
)
def test_a_page_without_capacity_is_refused(page: str) -> None:
    with pytest.raises(ConfigError, match="KV cache"):
        kv_cache_of(page)


@pytest.mark.parametrize("argument", ["--quantization", "--kv-cache-dtype=fp8", "--dtype=half"])
def test_arguments_that_change_the_roofline_are_refused(argument: str) -> None:
    with pytest.raises(ConfigError, match=argument):
        check_engine_args(["--max-num-batched-tokens=8192", argument])


def test_adapters_are_mixed_in_one_target() -> None:
    base = Target("vllm", "http://x", ("bench",))
    targets = targets_of(base, ["a", "b", "c"], [1, 3])
    assert [target.name for target in targets] == ["base", "1", "3"]
    assert [target.models for target in targets] == [("bench",), ("a",), ("a", "b", "c")]


def test_the_adapter_table_compares_with_the_base_model() -> None:
    results = {"base": [wave(100), wave(100)], "8": [wave(80), wave(80)]}
    assert "| 8 | 80 | 80.0% | 2.00 | 1.00x |" in lora_table(results)


def test_a_result_file_is_whole_or_absent(tmp_path: Path) -> None:
    path = tmp_path / "results" / "run.json"
    save(path, {"date": "2026-11-23"})
    with pytest.raises(TypeError):
        save(path, {"date": object()})
    assert json.loads(path.read_text()) == {"date": "2026-11-23"}


async def test_a_machine_that_cannot_be_measured_ends_the_run_with_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert await run(parse_arguments(["--device", "cuda"])) == 1
    assert "sees no GPU here" in capsys.readouterr().err
