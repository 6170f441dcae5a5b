"""Weights small enough to make inside a test: random, but of real architectures."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    BertConfig,
    BertModel,
    CodeGenConfig,
    CodeGenForCausalLM,
    PreTrainedTokenizerFast,
)

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "rain", "falls", "on", "hills"]


def _write_tokenizer(target: Path, *, max_length: int) -> None:
    words = WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]")
    tokenizer = Tokenizer(words)
    tokenizer.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=max_length,
    ).save_pretrained(target)


def write_codegen(target: Path) -> Path:
    """A CodeGen (MOSS's architecture) of a few thousand weights, without a chat template."""
    torch.manual_seed(0)
    config = CodeGenConfig(
        vocab_size=len(WORDS), n_positions=256, n_ctx=256, n_embd=32, n_layer=2, n_head=4,
        rotary_dim=4, bos_token_id=2, eos_token_id=3,
    )  # fmt: skip
    CodeGenForCausalLM(config).save_pretrained(target)
    _write_tokenizer(target, max_length=256)
    return target


def write_bert(target: Path) -> Path:
    """A BERT of a few thousand weights, to embed with."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS), hidden_size=64, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=128,
    )  # fmt: skip
    BertModel(config).save_pretrained(target)
    _write_tokenizer(target, max_length=128)
    return target


def write_adapter(target: Path, model_dir: Path, *, r: int = 8) -> Path:
    """A random LoRA adapter for a Llama-like model, strong enough to change its answers."""
    config = json.loads((model_dir / "config.json").read_text())
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    width = config["num_key_value_heads"] * hidden // heads
    torch.manual_seed(1)
    tensors = {}
    for layer in range(config["num_hidden_layers"]):
        for module, out in (("q_proj", hidden), ("v_proj", width)):
            name = f"base_model.model.model.layers.{layer}.self_attn.{module}"
            tensors[f"{name}.lora_A.weight"] = torch.randn(r, hidden)
            tensors[f"{name}.lora_B.weight"] = torch.randn(out, r)
    target.mkdir(parents=True)
    save_file(tensors, target / "adapter_model.safetensors")
    peft = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": r, "lora_alpha": 2 * r,
        "lora_dropout": 0.0, "bias": "none", "target_modules": ["q_proj", "v_proj"],
    }  # fmt: skip
    (target / "adapter_config.json").write_text(json.dumps(peft))
    return target
