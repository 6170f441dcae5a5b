"""A tiny model with random weights, as the builder writes it."""

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

from maas.edge.export.build import BuildOptions, build

VOCAB_SIZE = 288
EOS = 257


def write_tiny_weights(folder: Path, *, seed: int = 0, **sizes: int) -> None:
    """Write a two-layer Llama whose tokens are bytes."""
    torch.manual_seed(seed)
    tiny = {"hidden_size": 64, "intermediate_size": 128, "max_position_embeddings": 512}
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        eos_token_id=EOS,
        bos_token_id=256,
        tie_word_embeddings=False,
        # Random weights of the usual size answer nearly the same to everything.
        initializer_range=0.4,
        **(tiny | sizes),
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    write_tiny_tokenizer(folder)


def write_tiny_tokenizer(folder: Path) -> None:
    """Write a tokenizer whose tokens are bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {char: index for index, char in enumerate(alphabet)}
    vocab |= {"<s>": 256, "</s>": EOS}
    vocab |= {f"<unused{i}>": i for i in range(258, VOCAB_SIZE)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "chat_template": "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[a]",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its weights."""
    folder = tmp_path_factory.mktemp("tiny") / "weights"
    folder.mkdir()
    write_tiny_weights(folder)
    return folder


@pytest.fixture(scope="session")
def tiny(tiny_weights: Path) -> Path:
    """Its int8 graph, with tokenizer and template."""
    return build_graph(tiny_weights)


@pytest.fixture(scope="session")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The graph of one whose keys and values take 4 KiB a token, and that reads 4,096 tokens."""
    folder = tmp_path_factory.mktemp("wide") / "weights"
    folder.mkdir()
    write_tiny_weights(folder, hidden_size=512, max_position_embeddings=4096)
    return build_graph(folder)


def build_graph(weights: Path) -> Path:
    """Build the int8 graph of some weights beside them."""
    folder = weights.parent / "graph"
    build(weights, folder, BuildOptions(precision="int8", block_size=32))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((weights / name).read_bytes())
    return folder
