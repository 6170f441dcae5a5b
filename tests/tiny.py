"""A model of a few weights with SmolLM2's tokenizer: trains in seconds, and really."""

import shutil
from pathlib import Path

import torch
import yaml
from transformers import LlamaConfig, LlamaForCausalLM

NAME = "tiny-llama"
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def make_tiny(tokenizer_from: Path, folder: Path) -> Path:
    """Write the weights of a tiny Llama; the same each time."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=49_152,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    for name in _TOKENIZER:
        if (tokenizer_from / name).exists():
            shutil.copy(tokenizer_from / name, folder / name)
    return folder


def write_card(models_dir: Path, weights: Path, *, price: str = "8") -> None:
    """Write the card of a tiny model whose weights are in a folder."""
    models_dir.mkdir(parents=True, exist_ok=True)
    card = {
        "id": NAME,
        "family": "llama",
        "architecture": "LlamaForCausalLM",
        "parameters": 1_600_000,
        "context": 512,
        "modality": ["text"],
        "languages": ["en"],
        "licence": {"name": "Apache-2.0", "grade": "commercial"},
        "origin": "tests",
        "source": [f"file://{weights}"],
        "dtype": "float32",
        "shape": {
            "num_layers": 2,
            "hidden_size": 32,
            "num_attention_heads": 2,
            "num_kv_heads": 1,
            "head_dim": 16,
            "vocab_size": 49_152,
        },
        "engines": ["vllm", "transformers"],
        "price": {"training_per_million": price},
    }
    (models_dir / f"{NAME}.yaml").write_text(yaml.safe_dump(card))
