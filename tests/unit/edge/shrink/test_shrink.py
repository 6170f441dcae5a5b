"""Pruning leaves an ordinary, smaller model; recovering brings it nearer to what it was."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from maas.core.errors import ConfigError
from maas.edge.export.build import BuildOptions, build
from maas.edge.quality.scorers import OnnxScorer, TorchScorer
from maas.edge.runtime.engine.options import EngineOptions
from maas.edge.shrink.prune import count_parameters, drop_heads, prune
from maas.edge.shrink.recover import recover
from tests.unit.edge.conftest import write_tiny_tokenizer

ROWS = torch.tensor(np.random.default_rng(4).integers(0, 256, (8, 32)))


@pytest.fixture
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        # No other size is like it: the builder tells the head by that.
        vocab_size=288,
        hidden_size=64,
        intermediate_size=256,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.2,
        eos_token_id=257,
    )
    return LlamaForCausalLM(config).to(torch.bfloat16).eval()


def test_blocks_that_change_least_go_first_and_the_ends_stay(model):
    with torch.no_grad():
        for linear in (model.model.layers[3].mlp.down_proj, model.model.layers[3].self_attn.o_proj):
            linear.weight.zero_()
    per_block = sum(p.numel() for p in model.model.layers[0].parameters())
    before = count_parameters(model)
    pruned = prune(model, [ROWS], before - per_block)
    assert pruned.blocks == (3,)
    assert pruned.num_parameters == count_parameters(model) == before - per_block
    assert pruned.intermediate_size == 256


def test_a_block_that_did_nothing_is_not_missed(model):
    with torch.no_grad():
        for linear in (model.model.layers[3].mlp.down_proj, model.model.layers[3].self_attn.o_proj):
            linear.weight.zero_()
        expected = model(ROWS).logits
    per_block = sum(p.numel() for p in model.model.layers[0].parameters())
    prune(model, [ROWS], count_parameters(model) - per_block)
    with torch.no_grad():
        assert torch.equal(model(ROWS).logits, expected)


def test_what_blocks_do_not_give_the_width_does(model, tmp_path: Path):
    target = int(0.6 * count_parameters(model))
    pruned = prune(model, [ROWS], target)
    assert len(pruned.blocks) == 2
    assert pruned.intermediate_size < 256
    assert pruned.intermediate_size % 64 == 0
    assert pruned.num_parameters <= target
    # Loaded as any other, and built.
    model.save_pretrained(tmp_path / "m")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "m", dtype=torch.bfloat16).eval()
    weights = dict(again.named_parameters())
    assert weights.keys() == dict(model.named_parameters()).keys()
    assert all(torch.equal(weights[n], value) for n, value in model.named_parameters())
    write_tiny_tokenizer(tmp_path / "m")
    build(tmp_path / "m", tmp_path / "g", BuildOptions(precision="int8", block_size=32))
    tokens = ROWS[0].tolist()
    theirs = TorchScorer(again.float(), frozenset([257])).logits(tokens)
    ours = OnnxScorer(tmp_path / "g", EngineOptions(num_threads=1)).logits(tokens)
    assert np.corrcoef(theirs.ravel(), ours.ravel())[0, 1] > 0.99


def test_heads_go_where_blocks_and_width_are_not_enough(model, tmp_path: Path):
    original = copy.deepcopy(model)
    with torch.no_grad():
        # The first of two key-value heads says nothing anywhere.
        for block in original.model.layers:
            block.self_attn.o_proj.weight[:, :32] = 0
        expected = original(ROWS).logits
    before = count_parameters(original)
    pruned = prune(original, [ROWS], before * 43 // 100)
    assert pruned.num_key_value_heads == 1
    assert pruned.num_parameters <= before * 43 // 100
    assert original.config.num_attention_heads == 2
    assert original.config.head_dim == 16
    # They alone: nothing is missed.
    alone = copy.deepcopy(model)
    with torch.no_grad():
        for block in alone.model.layers:
            block.self_attn.o_proj.weight[:, :32] = 0
    drop_heads(alone, [ROWS], 1)
    with torch.no_grad():
        assert torch.allclose(alone(ROWS).logits, expected, atol=0.05, rtol=0.05)
    alone.save_pretrained(tmp_path / "m")
    write_tiny_tokenizer(tmp_path / "m")
    build(tmp_path / "m", tmp_path / "g", BuildOptions(precision="int8", block_size=32))
    tokens = ROWS[0].tolist()
    theirs = TorchScorer(alone.float(), frozenset([257])).logits(tokens)
    ours = OnnxScorer(tmp_path / "g", EngineOptions(num_threads=1)).logits(tokens)
    assert np.corrcoef(theirs.ravel(), ours.ravel())[0, 1] > 0.99


def test_more_than_can_be_recovered_is_refused_with_how_small_it_gets(model):
    before = count_parameters(model)
    with pytest.raises(ConfigError, match="no fewer than") as caught:
        prune(model, [ROWS], before // 5)
    assert count_parameters(model) == before
    least = int(caught.value.message.split("than ")[1].split()[0])
    assert prune(model, [ROWS], least).num_parameters <= least


def test_recovering_brings_it_nearer_and_keeps_its_type(model):
    original = copy.deepcopy(model)
    prune(model, [ROWS], int(0.8 * count_parameters(model)))
    told: list[float] = []
    done = recover(model, original, ROWS, max_seconds=6.0, tell=told.append)
    assert done.num_steps > 3
    assert done.last_divergence < 0.9 * done.first_divergence
    assert model.dtype == torch.bfloat16
    assert told[-1] == 1.0
