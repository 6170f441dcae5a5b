"""Rounding: the graph has what was computed, and less is lost than by nearest values."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from maas.core.errors import BuildFailed
from maas.edge.export.build import BuildOptions, build, put_weights
from maas.edge.export.edit import pack
from maas.edge.export.gptq import Grid, find_scales, round_layers, round_nearest, round_weight
from maas.edge.quality.scorers import OnnxScorer, TorchScorer
from maas.edge.runtime.engine.options import EngineOptions

TOKENS = [int(n) for n in np.random.default_rng(3).integers(0, 256, 40)]
ROWS = torch.tensor(np.random.default_rng(4).integers(0, 256, (4, 64)))


@pytest.mark.parametrize("bits", [4, 8])
def test_values_lie_on_the_grid_and_near_the_weight(bits: int) -> None:
    weight = torch.randn(12, 100, generator=torch.Generator().manual_seed(0))
    grid = Grid(bits, 32)
    rounded = round_weight(weight, None, grid)
    assert rounded.values.dtype == torch.uint8
    assert int(rounded.values.max()) < 2 * grid.zero
    step = rounded.scales.abs().repeat_interleave(32, 1)[:, :100]
    # Beyond the grid's ends a weight is cut, which the search for scales allows for a few.
    assert ((rounded.weight() - weight).abs() <= step * 0.5001).float().mean() > 0.95


def test_scales_reach_the_largest_weight_where_nothing_is_gained_by_less() -> None:
    block = torch.tensor([[-8.0, 7.0, 3.0, 0.0], [8.0, -7.0, 1.0, 2.0]])
    scales = find_scales(block, Grid(4, 4))
    assert torch.allclose(scales, torch.tensor([1.0, -1.0]))


def test_a_block_of_zeros_stays_zero() -> None:
    assert not round_weight(torch.zeros(3, 32), None, Grid(4, 32)).weight().any()


def test_what_inputs_say_makes_the_output_nearer() -> None:
    source = torch.Generator().manual_seed(1)
    # Inputs that go together, as a model's do.
    inputs = torch.randn(400, 8, generator=source) @ torch.randn(8, 64, generator=source)
    inputs += 0.1 * torch.randn(400, 64, generator=source)
    weight = torch.randn(48, 64, generator=source)
    grid = Grid(4, 32)
    blind = round_weight(weight, None, grid).weight()
    seeing = round_weight(weight, inputs.T @ inputs, grid).weight()
    lost = [float((inputs @ (rounded - weight).T).square().mean()) for rounded in (blind, seeing)]
    assert lost[1] < 0.5 * lost[0], lost


def test_values_are_packed_low_half_first_and_filled_with_zero_weights() -> None:
    values = np.arange(6, dtype=np.uint8)[None]
    assert pack(values, 4, 4).tolist() == [[[0x10, 0x32], [0x54, 0x88]]]
    assert pack(values, 8, 4).tolist() == [[[0, 1, 2, 3], [4, 5, 128, 128]]]


@pytest.mark.parametrize("precision", ["int4", "int8"])
def test_the_graph_computes_with_the_weights_that_were_put_in(
    tiny_weights: Path, tmp_path: Path, precision: str
) -> None:
    bits = int(precision[3:])
    model = AutoModelForCausalLM.from_pretrained(tiny_weights, dtype=torch.float32).eval()
    told: list[float] = []
    rounded = round_layers(model, [ROWS], Grid(bits, 32), told.append).layers
    rounded["lm_head"] = round_weight(model.lm_head.weight.data, None, Grid(8, 32))
    model.lm_head.weight.data = rounded["lm_head"].weight()
    # What is looked up has eight bits as well.
    table = model.model.embed_tokens.weight
    table.data = round_nearest(table.data, Grid(8, 32)).weight()
    assert told[-1] == 1.0
    assert len(rounded) == 2 * 7 + 1
    options = BuildOptions(precision=precision, block_size=32, head_bits=8, accuracy_level=1)
    build(tiny_weights, tmp_path / "graph", options)
    plain = OnnxScorer(tmp_path / "graph", EngineOptions(num_threads=1)).logits(TOKENS)
    # q, k and v are one product: 2 layers of 5, and the head.
    assert put_weights(tmp_path / "graph", rounded) == 11
    ours = OnnxScorer(tmp_path / "graph", EngineOptions(num_threads=1)).logits(TOKENS)
    torch_says = TorchScorer(model, frozenset([257])).logits(TOKENS)
    spread = float(np.abs(torch_says).mean())
    assert float(np.abs(ours - torch_says).mean()) < 0.02 * spread
    if bits == 4:
        # Ours are other weights than the builder's: the test would see it if nothing was put in.
        assert float(np.abs(plain - torch_says).mean()) > 0.05 * spread


def test_an_architecture_nobody_can_build_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"architectures": ["Nothing"]}')
    with pytest.raises(BuildFailed, match="cannot build model"):
        build(tmp_path / "model", tmp_path / "out", BuildOptions())
