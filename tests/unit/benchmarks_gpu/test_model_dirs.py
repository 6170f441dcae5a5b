"""The folders an engine is started from."""

import json
from pathlib import Path

import pytest
from safetensors import safe_open
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoTokenizer

from benchmarks.gpu.adapters import target_sizes, write_adapters
from benchmarks.gpu.shapes import SHAPES, ModelShape, write_model_dir

TINY = ModelShape("tiny", 2, 8, 24, 2, 1, 32)


def test_the_tokenizer_has_a_word_for_every_id(tmp_path: Path) -> None:
    write_model_dir(TINY, tmp_path)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == TINY.vocab_size
    assert tokenizer.encode("w31 w3").ids == [31, 3]


@pytest.mark.parametrize("name", sorted(SHAPES))
def test_the_config_holds_the_shape(tmp_path: Path, name: str) -> None:
    shape = SHAPES[name]
    write_model_dir(shape, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["num_key_value_heads"] == shape.num_kv_heads
    assert config["tie_word_embeddings"] is shape.tie_embeddings
    assert config["head_dim"] * config["num_attention_heads"] == config["hidden_size"]


def test_nothing_ends_a_sequence_so_that_answers_have_a_fixed_length(tmp_path: Path) -> None:
    write_model_dir(TINY, tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).eos_token_id is None
    assert AutoTokenizer.from_pretrained(tmp_path).eos_token_id is None


def test_adapters_cover_every_linear_module_and_share_their_weights(tmp_path: Path) -> None:
    folders = write_adapters(TINY, tmp_path, count=3, r=4)
    assert len({folder.name for folder in folders}) == 3
    inodes = {(folder / "adapter_model.safetensors").stat().st_ino for folder in folders}
    assert len(inodes) == 1
    with safe_open(folders[2] / "adapter_model.safetensors", "np") as tensors:
        names = set(tensors.keys())
        prefix = "base_model.model.model.layers.1.self_attn.k_proj"
        # One KV head of two: half as wide.
        assert tensors.get_tensor(f"{prefix}.lora_A.weight").shape == (4, 8)
        assert tensors.get_tensor(f"{prefix}.lora_B.weight").shape == (4, 4)
    assert len(names) == 2 * TINY.num_layers * len(target_sizes(TINY))
