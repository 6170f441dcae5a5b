"""The embedding in eight bits: there once where it is the head's, and the same tokens come out."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime_genai as genai
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from maas.edge.export.build import DATA, GRAPH, BuildOptions, build, shrink_embedding
from maas.edge.quality.scorers import OnnxScorer
from maas.edge.runtime.engine.options import EngineOptions
from tests.unit.edge.conftest import write_tiny_tokenizer

TOKENS = [int(n) for n in np.random.default_rng(3).integers(0, 256, 40)]
VOCAB, HIDDEN = 4096, 64


def write(folder: Path, *, is_tied: bool) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        eos_token_id=257,
        tie_word_embeddings=is_tied,
        initializer_range=0.2,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    write_tiny_tokenizer(folder)


@pytest.mark.parametrize(
    ("precision", "head_bits", "is_tied", "saved_bytes"),
    [
        ("int8", 8, True, VOCAB * HIDDEN * 4),
        # Of its own: a byte and its share of a scale are left of four.
        ("int8", 8, False, VOCAB * HIDDEN * (4 - 1 - 4 / 32)),
        ("int4", 4, False, VOCAB * HIDDEN * (4 - 1 - 4 / 32)),
    ],
)
def test_the_embedding_has_eight_bits_and_the_answers_stay(
    tmp_path: Path, precision: str, head_bits: int, is_tied: bool, saved_bytes: float
) -> None:
    write(tmp_path / "m", is_tied=is_tied)
    graph = tmp_path / "g"
    build(tmp_path / "m", graph, BuildOptions("cpu", precision, 32, head_bits))
    options = EngineOptions(num_threads=1)
    before, size = OnnxScorer(graph, options).logits(TOKENS), (graph / DATA).stat().st_size
    shrink_embedding(graph)
    saved = size - (graph / DATA).stat().st_size
    assert saved == pytest.approx(saved_bytes, rel=0.01)
    ours = OnnxScorer(graph, options).logits(TOKENS)
    assert float(np.abs(ours - before).mean()) < 0.05 * float(np.abs(before).mean())
    model = onnx.load(str(graph / GRAPH), load_external_data=False)
    assert "model.embed_tokens.weight" not in {item.name for item in model.graph.initializer}
    generator = genai.Generator(loaded := genai.Model(str(graph)), genai.GeneratorParams(loaded))
    generator.append_tokens(np.array(TOKENS, np.int32))
    assert np.allclose(generator.get_logits()[0, -1], ours[-1], atol=1e-2)


def test_what_is_shared_already_is_left_alone(tmp_path: Path) -> None:
    write(tmp_path / "m", is_tied=True)
    build(tmp_path / "m", tmp_path / "g", BuildOptions("cpu", "int4", 32, 8))
    written = (tmp_path / "g" / GRAPH).read_bytes()
    shrink_embedding(tmp_path / "g")
    assert (tmp_path / "g" / GRAPH).read_bytes() == written
    assert json.loads((tmp_path / "m" / "config.json").read_text())["tie_word_embeddings"]
