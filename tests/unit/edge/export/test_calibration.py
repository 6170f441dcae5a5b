"""Calibration text: what the model itself says, the same for a seed."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from maas.edge.export import calibration
from maas.edge.export.attention import grouped_attention
from maas.edge.export.calibration import write_rows


def write(weights: Path, seed: int) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(weights, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(weights)
    told: list[float] = []
    rows = write_rows(model, tokenizer, num_rows=3, seed=seed, tell=told.append)
    assert told == sorted(told)
    assert model.config._attn_implementation == "sdpa"
    return rows


def test_a_seed_gives_the_same_rows_and_another_others(
    tiny_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "_MAX_NEW_TOKENS", 24)
    rows = write(tiny_weights, 0)
    assert rows.shape == (3, 256)
    assert int(rows.min()) >= 0
    assert torch.equal(rows, write(tiny_weights, 0))
    assert not torch.equal(rows, write(tiny_weights, 1))


@torch.no_grad()
def test_heads_that_go_together_attend_as_each_alone(tiny_weights: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_weights, dtype=torch.float32).eval()
    ids = torch.randint(0, 256, (3, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, :4] = 0

    def last_step() -> torch.Tensor:
        cache = model(ids[:, :-1], attention_mask=mask[:, :-1], use_cache=True).past_key_values
        return model(ids[:, -1:], attention_mask=mask, past_key_values=cache).logits

    expected = last_step()
    with grouped_attention(model):
        assert model.config._attn_implementation == "maas_grouped"
        assert torch.allclose(last_step(), expected, atol=1e-4)
