"""Each architecture that is exported answers as the original does; others are refused by name."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from maas.catalog.catalog import load_catalog
from maas.core.errors import CapabilityMissing
from maas.core.settings import Settings
from maas.edge.export import pipeline
from maas.edge.export.architectures import (
    PROVEN_ARCHITECTURES,
    check_architecture,
    check_weights,
    is_proven,
)
from maas.edge.export.build import BuildOptions, build, put_weights
from maas.edge.export.form import prepare_form
from maas.edge.export.gptq import Grid, round_layers, round_nearest
from maas.edge.export.pipeline import run
from maas.edge.export.spec import ExportResult, ExportSpec, QualityDemand
from maas.edge.quality.scorers import OnnxScorer, TorchScorer, log_softmax
from maas.edge.runtime.bundle.archive import unpack
from maas.edge.runtime.engine.options import EngineOptions
from maas.edge.runtime.server.serve import open_served
from tests.contract.small_weights import write_adapter
from tests.fakes.bundles import SEED
from tests.unit.edge.conftest import EOS, VOCAB_SIZE, write_tiny_tokenizer

_SIZES = {
    "vocab_size": VOCAB_SIZE, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
    "eos_token_id": EOS, "bos_token_id": 256, "pad_token_id": EOS, "initializer_range": 0.2,
    "tie_word_embeddings": False,
}  # fmt: skip
_WINDOW = {"use_sliding_window": True, "sliding_window": 32, "max_window_layers": 1}
_GEMMA = {"head_dim": 16, "tie_word_embeddings": True}
_LAYERS = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 32}
_LLAMA_3 = {
    "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
}  # fmt: skip
_MULTIPLIERS = {
    "embedding_multiplier": 6.0, "attention_multiplier": 0.1, "residual_multiplier": 0.5,
    "logits_scaling": 0.5,
}  # fmt: skip
# By architecture, what its configurations have that others have not.
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "GemmaForCausalLM": ("GemmaConfig", _GEMMA),
    "Gemma3ForCausalLM": ("Gemma3TextConfig", {**_GEMMA, **_LAYERS, "query_pre_attn_scalar": 16}),
    "GraniteForCausalLM": ("GraniteConfig", _MULTIPLIERS),
    "LlamaForCausalLM": ("LlamaConfig", {"rope_parameters": _LLAMA_3}),
    "Qwen2ForCausalLM": ("Qwen2Config", _WINDOW),
    "Qwen3ForCausalLM": ("Qwen3Config", {**_WINDOW, "head_dim": 16}),
}
# Longer than windows, and than what is computed in one go.
PROMPT = [int(n) for n in np.random.default_rng(1).integers(0, 256, 280)]
ROWS = torch.tensor(np.random.default_rng(4).integers(0, 256, (4, 64)))
GRID = Grid(4, 32)


def write_weights(folder: Path, architecture: str, **more: Any) -> Path:
    """Write a tiny model of an architecture; with norms that do something."""
    torch.manual_seed(0)
    name, own = KINDS[architecture]
    config = getattr(transformers, name)(**{**_SIZES, **own, **more})
    model = getattr(transformers, architecture)(config)
    with torch.no_grad():
        for path, weight in model.named_parameters():
            if "norm" in path:
                weight.add_(0.2 * torch.randn(weight.shape))
        if architecture.startswith("Gemma"):
            # Its embedding is scaled up: left as it is, a random one says each token again.
            model.model.embed_tokens.weight.mul_(0.05)
            model.model.norm.weight.add_(19)
    model.to(torch.bfloat16).save_pretrained(folder)
    write_tiny_tokenizer(folder)
    return folder


def changed_config(folder: Path, **fields: Any) -> Path:
    folder.mkdir()
    plain = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
    (folder / "config.json").write_text(json.dumps({**plain, **fields}))
    return folder


def rounded_original(weights: Path) -> tuple[Any, dict[str, Any]]:
    """Return a model whose weights were rounded in place, and what they were rounded to."""
    model: Any = AutoModelForCausalLM.from_pretrained(weights, dtype=torch.float32).eval()
    rounded = round_layers(model, [ROWS], GRID, lambda _: None).layers
    for name, module in (("lm_head", model.lm_head), ("", model.model.embed_tokens)):
        # The embedding has eight bits whatever the head has.
        values = round_nearest(module.weight.data, Grid(8, GRID.block_size))
        module.weight.data = values.weight()
        if name:
            rounded[name] = values
    return model, rounded


def test_each_that_is_offered_is_tried_here() -> None:
    assert set(KINDS) == set(PROVEN_ARCHITECTURES)


@pytest.mark.parametrize("architecture", sorted(KINDS))
def test_its_graph_answers_as_the_original_with_the_same_weights(
    architecture: str, tmp_path: Path
) -> None:
    weights = write_weights(tmp_path / "w", architecture)
    model, rounded = rounded_original(weights)
    build(weights, tmp_path / "g", BuildOptions("cpu", "int4", GRID.block_size, 8, 1))
    # q, k and v are one product: two layers of five, and the head.
    assert put_weights(tmp_path / "g", rounded) == 11
    original = TorchScorer(model, frozenset([EOS]))
    graph = OnnxScorer(tmp_path / "g", EngineOptions(num_threads=1))
    ours, theirs = (log_softmax(side.logits(PROMPT)) for side in (graph, original))
    divergence = (np.exp(theirs) * (theirs - ours)).sum(-1)
    # Of most 1e-11; the builder adds one to Gemma's norms in bfloat16.
    assert float(divergence.max()) < 3e-3
    assert float((ours.argmax(-1) == theirs.argmax(-1)).mean()) > 0.95
    # Random as they are, their answers are not a matter of course.
    assert float((np.exp(theirs) * theirs).sum(-1).mean()) + np.log(VOCAB_SIZE) > 1
    assert graph.greedy([PROMPT], 8) == original.greedy([PROMPT], 8)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", sorted(KINDS))
def test_a_whole_export_with_an_adapter_merged_is_near_the_original(
    architecture: str, tmp_path: Path
) -> None:
    weights = write_weights(tmp_path / "w", architecture)
    adapter = write_adapter(tmp_path / "a", weights, r=4)
    made = export(weights, tmp_path, adapter_dir=adapter)
    head = unpack(made.bundle_path, tmp_path / "out", None)
    served = open_served(tmp_path / "out", "m", EngineOptions(num_threads=1), ())
    served.engine.close()
    proof = json.loads((tmp_path / "out" / "receipt.json").read_text())["quality"]
    assert head.manifest.receipt["verdict"] == proof["verdict"] == "passed"
    is_below = proof["score_percent"] < 98
    assert head.manifest.receipt["below_goal"] is proof["below_goal"] is is_below
    assert head.manifest.marks == ("below_goal",) * is_below
    # The adapter is as random as the weights, and stronger: without it nothing would agree.
    assert proof["kl_divergence"] < 0.25
    assert proof["greedy_agreement"] > 0.6


def export(weights: Path, home: Path, **more: object) -> ExportResult:
    spec = ExportSpec.model_validate(
        {
            "model_id": "m", "base_model_id": "m", "model_dir": weights, "precision": "int8",
            "name": "m", "work_dir": home / "work", "out_path": home / "m.maas",
            "signing_key": SEED, "max_model_len": 512, "licence": {}, "created_at": 0.0,
            "num_threads": 1, "quality": QualityDemand(), **more,
        }
    )  # fmt: skip
    return run(spec, lambda _: None)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"architectures": ["OlmoForCausalLM"]}, "OlmoForCausalLM"),
        ({"architectures": ["MistralForCausalLM"]}, "MistralForCausalLM"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "'yarn'"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "'dynamic'"),
        ({"sliding_window": 4096}, "sliding window"),
        ({"architectures": []}, "names no class"),
    ],
)
def test_weights_that_would_not_be_built_as_they_say_are_refused_before_they_are_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any], named: str
) -> None:
    monkeypatch.setattr(pipeline, "AutoModelForCausalLM", None)
    weights = changed_config(tmp_path / "w", **fields)
    for make in (export, prepare_form):
        with pytest.raises(CapabilityMissing, match=named) as caught:
            make(weights, tmp_path / "home")
        assert caught.value.context["param"] == "model"
    assert not (tmp_path / "home").exists()


def test_weights_are_judged_as_both_generations_of_transformers_write_them(tmp_path: Path) -> None:
    for number, fields in enumerate(
        (
            {"rope_scaling": None},
            {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
            {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
            {"sliding_window": None},
            {
                "architectures": ["Gemma3ForCausalLM"],
                "sliding_window": 512,
                "rope_parameters": {
                    kind: {"rope_type": "default"}
                    for kind in ("full_attention", "sliding_attention")
                },
            },
        )
    ):
        check_weights(changed_config(tmp_path / str(number), **fields), "m")


def test_cards_are_offered_or_refused_by_the_name_of_their_architecture() -> None:
    cards = load_catalog(Settings().models_dir)
    for card in cards.values():
        if "onnx" in card.engines:
            assert is_proven(card.architecture), card.id
    for model_id in ("glm-4-9b-chat", "baichuan2-7b-chat", "rwkv-6-world-7b"):
        card = cards[model_id]
        with pytest.raises(CapabilityMissing, match=f"{model_id}: .*{card.architecture}"):
            check_architecture(card.architecture, card.id)
    check_architecture(cards["qwen3-8b"].architecture, "qwen3-8b")
