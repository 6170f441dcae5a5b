"""Turns a GGUF file into a safetensors folder: ``python -m maas.engines.convert GGUF OUT DTYPE``.

Runs in a process of its own, so that whoever asked never holds torch.

transformers reads weights, vocabulary and chat template from a GGUF file. What it leaves out
is mended here from the file's own metadata (names as in the GGUF specification):

- ``tokenizer.ggml.add_bos_token`` and ``add_eos_token``: Gemma without its first token
  babbles.
- ``tokenizer.ggml.pre``: how text is cut before merging; the default is GPT-2's way.
- ``eos_token_id``, ``eot_token_id``, ``eom_token_id``: every one of them ends generation.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from gguf import GGUFReader
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from maas.core.lifeline import LIFELINE_FLAG, end_with_parent

_BYTES: dict[str, Any] = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": True,
    "use_regex": False,
}
_GPT2_BYTES: dict[str, Any] = {**_BYTES, "use_regex": True}


def _by_regex(pattern: str) -> dict[str, Any]:
    split = {
        "type": "Split",
        "pattern": {"Regex": pattern},
        "behavior": "Isolated",
        "invert": False,
    }
    return {"type": "Sequence", "pretokenizers": [split, _BYTES]}


_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# As the models' own tokenizer.json has them; a name that is not here keeps GPT-2's way.
PRE_TOKENIZERS: dict[str, dict[str, Any]] = {
    "smollm": {
        "type": "Sequence",
        "pretokenizers": [{"type": "Digits", "individual_digits": True}, _GPT2_BYTES],
    },
    "llama-bpe": _by_regex(_WORDS % "{1,3}"),
    "qwen2": _by_regex(_WORDS % ""),
}


def read_metadata(gguf: Path) -> dict[str, Any]:
    """Return the file's single values by name; arrays (the vocabulary) are left out."""
    fields = GGUFReader(gguf).fields
    return {name: field.contents() for name, field in fields.items() if len(field.data) == 1}


def post_processor(tokenizer: dict[str, Any], metadata: dict[str, Any]) -> dict[str, Any] | None:
    """Return the step that adds first and last tokens, or none where the file says nothing."""
    names = {entry["id"]: entry["content"] for entry in tokenizer["added_tokens"]}
    wanted = {
        kind: metadata.get(f"tokenizer.ggml.{kind}_token_id")
        for kind in ("bos", "eos")
        if metadata.get(f"tokenizer.ggml.add_{kind}_token")
    }
    tokens = {kind: (names[i], i) for kind, i in wanted.items() if i in names}
    if not tokens:
        return None

    def around(sequence: str, type_id: int) -> list[dict[str, Any]]:
        special = {
            kind: [{"SpecialToken": {"id": name, "type_id": type_id}}]
            for kind, (name, _) in tokens.items()
        }
        middle = [{"Sequence": {"id": sequence, "type_id": type_id}}]
        return [*special.get("bos", []), *middle, *special.get("eos", [])]

    return {
        "type": "TemplateProcessing",
        "single": around("A", 0),
        "pair": [*around("A", 0), *around("B", 1)],
        "special_tokens": {
            name: {"id": name, "ids": [i], "tokens": [name]} for name, i in tokens.values()
        },
    }


def mend_tokenizer(out: Path, metadata: dict[str, Any]) -> None:
    """Put what the GGUF file says of its tokenizer into ``tokenizer.json``."""
    path = out / "tokenizer.json"
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    processor = post_processor(tokenizer, metadata)
    if processor is not None:
        tokenizer["post_processor"] = processor
    cut = PRE_TOKENIZERS.get(str(metadata.get("tokenizer.ggml.pre")))
    if cut is not None and metadata.get("tokenizer.ggml.model") == "gpt2":
        tokenizer["pre_tokenizer"] = cut
    path.write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")


def end_token_ids(metadata: dict[str, Any]) -> list[int]:
    """Return every token that ends generation, the main one first."""
    names = [f"tokenizer.ggml.{kind}_token_id" for kind in ("eos", "eot", "eom")]
    return list(dict.fromkeys(int(metadata[name]) for name in names if name in metadata))


def mend_generation_config(out: Path, metadata: dict[str, Any]) -> None:
    """Say which tokens end generation, so that engines stop there."""
    path = out / "generation_config.json"
    config: dict[str, Any] = {}
    if path.exists():
        config = json.loads(path.read_text(encoding="utf-8"))
    ends = end_token_ids(metadata)
    if ends:
        config["eos_token_id"] = ends if len(ends) > 1 else ends[0]
    for kind, name in (("bos", "bos"), ("pad", "padding")):
        token = metadata.get(f"tokenizer.ggml.{name}_token_id")
        if token is not None:
            config[f"{kind}_token_id"] = int(token)
    path.write_text(json.dumps(config, indent=2), encoding="utf-8")


def convert(gguf: Path, out: Path, dtype: str) -> None:
    """Write config, tokenizer and dequantised weights to ``out``.

    Args:
        gguf: The file.
        out: Folder to write to.
        dtype: Torch name of the type to store.
    """
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        dtype=torch.float32,
        # Without this transformers keeps the packed form and cannot save it.
        quantization_config=GgufConfig(dequantize=True),
    )
    model.to(getattr(torch, dtype)).save_pretrained(out)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    metadata = read_metadata(gguf)
    if tokenizer.chat_template is None:
        tokenizer.chat_template = metadata.get("tokenizer.chat_template")
    tokenizer.save_pretrained(out)
    mend_tokenizer(out, metadata)
    mend_generation_config(out, metadata)


def main() -> None:
    """Run the command line."""
    if LIFELINE_FLAG in sys.argv:
        end_with_parent()
    convert(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])


if __name__ == "__main__":
    main()
