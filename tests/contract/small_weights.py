"""Weights small enough to make inside a test: random, but of real architectures."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
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


_AWQ_GROUP = 64
_AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]


def _pack_awq(values: torch.Tensor) -> torch.Tensor:
    """Pack 4-bit values [rows, columns] into int32 [rows, columns / 8], in AutoAWQ's order."""
    parts = values.to(torch.int64).view(values.shape[0], -1, 8)[:, :, _AWQ_ORDER]
    packed = (parts << (4 * torch.arange(8))).sum(-1)
    return torch.where(packed >= 2**31, packed - 2**32, packed).to(torch.int32)


def _awq(name: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
    """Round ``weight`` [out, in] to the nearest of 16 steps in each group of inputs."""
    columns = weight.float().T.contiguous()
    groups = columns.view(-1, _AWQ_GROUP, columns.shape[1])
    low, high = groups.amin(1).clamp(max=0), groups.amax(1).clamp(min=0)
    scales = ((high - low) / 15).clamp(min=1e-6)
    zeros = (-low / scales).round().clamp(0, 15)
    steps = (groups / scales[:, None] + zeros[:, None]).round().clamp(0, 15)
    return {
        f"{name}qweight": _pack_awq(steps.view_as(columns)),
        f"{name}qzeros": _pack_awq(zeros),
        f"{name}scales": scales.to(torch.float16),
    }


def write_awq(target: Path, source: Path) -> Path:
    """The AWQ form of a Llama-like model, in the layout AutoAWQ publishes; not calibrated."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.safetensors", "manifest.json"))
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in load_file(source / "model.safetensors").items():
        is_linear = name.endswith("_proj.weight")
        tensors |= _awq(name.removesuffix("weight"), tensor) if is_linear else {name: tensor}
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((target / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "awq",
        "bits": 4,
        "group_size": _AWQ_GROUP,
        "zero_point": True,
        "version": "gemm",
    }
    (target / "config.json").write_text(json.dumps(config))
    return target
