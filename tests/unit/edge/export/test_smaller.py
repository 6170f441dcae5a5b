"""A bundle of so many bytes: the model is shrunk until its graph fits, whatever the method."""

from pathlib import Path

import pytest
import torch
from pydantic import SecretStr, ValidationError
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from maas.core.errors import ConfigError
from maas.edge.export import quantise
from maas.edge.export.quantise import Setting, Source, search
from maas.edge.export.sizes import Sizes
from maas.edge.export.smaller import graph_limit, shrink
from maas.edge.export.spec import ExportSpec, QualityDemand, ShrinkDemand, ShrinkMethod
from maas.edge.quality.measure import take_reference
from maas.edge.quality.scorers import TorchScorer
from maas.edge.shrink.prune import count_parameters
from tests.fakes.bundles import SEED
from tests.unit.edge.conftest import write_tiny_tokenizer

ROWS = torch.randint(0, 256, (8, 64), generator=torch.Generator().manual_seed(0))
SETTING = Setting(64, 4, 4)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=288,
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.15,
        eos_token_id=257,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(tmp_path / "weights")
    write_tiny_tokenizer(tmp_path / "weights")
    return tmp_path / "weights"


def spec_of(weights: Path, demand: ShrinkDemand) -> ExportSpec:
    return ExportSpec(
        model_id="tiny",
        base_model_id="tiny",
        model_dir=weights,
        name="tiny",
        work_dir=weights.parent,
        out_path=weights.parent / "out.maas",
        signing_key=SecretStr(SEED),
        max_model_len=128,
        licence={},
        quality=QualityDemand(force=True),
        shrink=demand,
        num_threads=1,
        created_at=0.0,
    )


def load(weights: Path) -> LlamaForCausalLM:
    return AutoModelForCausalLM.from_pretrained(weights, dtype=torch.bfloat16).eval()


@pytest.mark.parametrize(
    "method",
    [
        pytest.param("prune", marks=pytest.mark.slow),
        pytest.param("low_rank", marks=pytest.mark.slow),
        "both",
    ],
)
def test_the_graph_fits_and_is_near_the_target(
    weights: Path, monkeypatch: pytest.MonkeyPatch, method: ShrinkMethod
) -> None:
    monkeypatch.setitem(quantise.SETTINGS, "int4", (SETTING,))
    model = load(weights)
    sizes, before = Sizes.of(model), count_parameters(model)
    now = sizes.graph_bytes(4, 4, 64)
    demand = ShrinkDemand(target_size_bytes=1, method=method, recover_s=0.5)
    beside = 1 - (graph_limit(spec_of(weights, demand), weights) or 0)
    target = int(0.8 * now) + beside
    spec = spec_of(weights, demand.model_copy(update={"target_size_bytes": target}))
    limit = graph_limit(spec, weights)
    assert limit is not None
    assert limit == int(0.8 * now)
    done = shrink(spec.shrink, model, weights, ROWS, spec=spec, report=lambda _: None)
    assert done.is_low_rank == (method != "prune")
    assert ("blocks_removed" in done.receipt) == (method != "low_rank")
    assert done.receipt["recovery"]["num_steps"] >= 1
    assert count_parameters(model) <= done.receipt["target_parameters"] < before
    source = Source(done.model_dir, model, lambda: ROWS, done.is_low_rank, limit)
    reference = take_reference(
        TorchScorer(model, frozenset([257])), (), [[1, 2, 3]], lambda text: list(text.encode())
    )
    out = weights.parent / "bundle"
    (tried,) = search(source, reference, out, spec=spec, tell=lambda _, __: None)
    assert tried.is_taken
    assert 0.6 * limit < tried.size_bytes <= limit


def test_a_size_below_what_embedding_and_tokenizer_take_is_refused(weights: Path) -> None:
    demand = ShrinkDemand(target_size_bytes=70_000)
    spec, model = spec_of(weights, demand), load(weights)
    with pytest.raises(ConfigError, match="embedding and head alone take more"):
        shrink(demand, model, weights, ROWS, spec=spec, report=lambda _: None)


def test_one_target_is_named() -> None:
    for targets in ({}, {"target_parameters": 1, "target_size_bytes": 1}):
        with pytest.raises(ValidationError, match="name one of"):
            ShrinkDemand.model_validate(targets)
