"""Lower ranks: what is lost is known, and the built graph computes with the factors."""

import copy
from pathlib import Path

import numpy as np
import onnxruntime_genai as genai
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from maas.core.errors import ConfigError
from maas.edge.export.build import BuildOptions, build, put_weights
from maas.edge.export.gptq import Grid, round_layers, round_nearest
from maas.edge.quality.scorers import OnnxScorer, TorchScorer
from maas.edge.runtime.engine.options import EngineOptions
from maas.edge.shrink.low_rank import LowRank, best_factors, decompose, whole_state
from maas.edge.shrink.prune import count_parameters
from maas.edge.shrink.recover import recover
from tests.unit.edge.conftest import write_tiny_tokenizer

ROWS = torch.tensor(np.random.default_rng(4).integers(0, 256, (8, 32)))


@pytest.fixture
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=288,
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.15,
        eos_token_id=257,
        bos_token_id=256,
    )
    return LlamaForCausalLM(config).eval()


def smaller(model: LlamaForCausalLM, share: float) -> int:
    return int(share * count_parameters(model))


def correlated(rows: int, size: int) -> torch.Tensor:
    source = torch.Generator().manual_seed(1)
    inputs = torch.randn(rows, size // 4, generator=source) @ torch.randn(
        size // 4, size, generator=source
    )
    return inputs + 0.1 * torch.randn(rows, size, generator=source)


def test_full_rank_is_the_weight_itself():
    weight = torch.randn(48, 32, generator=torch.Generator().manual_seed(0))
    inputs = correlated(100, 32)
    up, down = best_factors(weight, inputs.T @ inputs, 32)
    assert torch.allclose((up @ down).float(), weight, atol=1e-5)


@pytest.mark.parametrize("shape", [(48, 32), (32, 48)])
def test_outputs_change_by_what_is_cut_off_and_less_than_by_plain_svd(shape):
    weight = torch.randn(*shape, generator=torch.Generator().manual_seed(0)).double()
    inputs = correlated(200, shape[1]).double()
    gram = inputs.T @ inputs
    up, down = best_factors(weight, gram, 12)
    lost = float((inputs @ (weight - up @ down).T).square().sum())
    u, s, v = torch.linalg.svd(weight, full_matrices=False)
    plain = float((inputs @ (weight - (u[:, :12] * s[:12]) @ v[:12]).T).square().sum())
    assert lost < 0.9 * plain
    cut_off = torch.linalg.svdvals(inputs @ weight.T)[12:]
    assert lost == pytest.approx(float(cut_off.square().sum()), rel=1e-6)


def test_a_target_is_met_and_what_matters_least_goes(model):
    with torch.no_grad():
        # Of rank 64 already: nothing is lost there.
        thin = model.model.layers[1].mlp.gate_proj
        u, s, v = torch.linalg.svd(thin.weight, full_matrices=False)
        thin.weight.copy_((u[:, :64] * s[:64]) @ v[:64])
        expected = model(ROWS).logits
    before = count_parameters(model)
    done = decompose(model, [ROWS], before - 10_000)
    assert done.ranks == {"model.layers.1.mlp.gate_proj": 64}
    assert done.num_parameters == count_parameters(model) == before - 512 * 128 + 64 * (512 + 128)
    assert done.expected_divergence < 1e-6
    with torch.no_grad():
        assert torch.allclose(model(ROWS).logits, expected, atol=1e-3)


def test_expected_divergence_is_about_what_is_measured(model):
    original = copy.deepcopy(model)
    # Text the model wrote, as in an export.
    rows = model.generate(ROWS[:, :1], max_new_tokens=63, do_sample=True, top_k=0)
    done = decompose(model, [rows], smaller(model, 0.85))
    with torch.no_grad():
        theirs, ours = (m(rows).logits.log_softmax(-1) for m in (original, model))
    measured = float((theirs.exp() * (theirs - ours)).sum(-1).mean())
    assert 0.2 < done.expected_divergence / measured < 5.0, (done.expected_divergence, measured)


def test_less_than_lower_ranks_can_leave_is_refused_with_how_small_it_gets(model):
    before = count_parameters(model)
    with pytest.raises(ConfigError, match="no fewer than") as caught:
        decompose(model, [ROWS], before // 10)
    assert count_parameters(model) == before
    least = int(caught.value.message.split("than ")[1].split()[0])
    assert decompose(model, [ROWS], least).num_parameters == least


def test_recovering_tunes_the_factors(model):
    original = copy.deepcopy(model)
    decompose(model, [ROWS], smaller(model, 0.8))
    assert any(isinstance(module, LowRank) for module in model.modules())
    done = recover(model, original, ROWS, max_seconds=4.0, tell=lambda _: None)
    assert done.last_divergence < 0.9 * done.first_divergence


@pytest.mark.parametrize("precision", ["int4", "int8"])
def test_the_graph_computes_with_the_factors_and_genai_loads_it(model, tmp_path: Path, precision):
    before = count_parameters(model)
    done = decompose(model, [ROWS], smaller(model, 0.75))
    # q, k and v are one product of the graph: they have one first factor.
    assert {name.rsplit(".", 1)[1] for name in done.ranks} >= {"q_proj", "up_proj", "down_proj"}
    model.save_pretrained(tmp_path / "m", state_dict=whole_state(model))
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "m", dtype=torch.float32).eval()
    assert count_parameters(whole) == before
    with torch.no_grad():
        assert torch.allclose(whole(ROWS).logits, model(ROWS).logits, atol=2e-3)
    grid = Grid(int(precision[3:]), 32)
    rounded = round_layers(model, [ROWS], grid, lambda _: None).layers
    rounded["lm_head"] = round_nearest(model.lm_head.weight.data, Grid(8, 32))
    model.lm_head.weight.data = rounded["lm_head"].weight()
    table = round_nearest(model.model.embed_tokens.weight.data, Grid(8, 32)).weight()
    model.model.embed_tokens.weight.data = table
    write_tiny_tokenizer(tmp_path / "m")
    graph = tmp_path / "g"
    build(tmp_path / "m", graph, BuildOptions("cpu", precision, 32, 8, accuracy_level=1))
    assert put_weights(graph, rounded) == 3 * 5 + 1
    tokens = ROWS[0].tolist()
    theirs = TorchScorer(model, frozenset([257])).logits(tokens)
    ours = OnnxScorer(graph, EngineOptions(num_threads=1)).logits(tokens)
    assert float(np.abs(ours - theirs).mean()) < 0.02 * float(np.abs(theirs).mean())
    generator = genai.Generator(loaded := genai.Model(str(graph)), genai.GeneratorParams(loaded))
    generator.append_tokens(np.array(tokens, np.int32))
    assert np.allclose(generator.get_logits()[0, -1], ours[-1], atol=1e-2)
