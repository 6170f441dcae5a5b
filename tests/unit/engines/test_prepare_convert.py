"""What conversion mends of a GGUF file's tokenizer, without a model."""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

pytest.importorskip("torch")
pytest.importorskip("transformers")
convert = pytest.importorskip("maas.engines.convert")


def _tokenizer(folder: Path) -> None:
    added = [
        {
            "id": i,
            "content": content,
            "special": True,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
        }
        for i, content in enumerate(["<s>", "</s>"])
    ]
    vocab = {"<s>": 0, "</s>": 1, "1": 2, "2": 3, "12": 4, "a": 5}
    model = {"type": "BPE", "vocab": vocab, "merges": [["1", "2"]]}
    tokenizer: dict[str, Any] = {
        "version": "1.0",
        "added_tokens": added,
        "model": model,
        "truncation": None,
        "padding": None,
        "normalizer": None,
        "decoder": None,
        "post_processor": None,
        "pre_tokenizer": {
            "type": "ByteLevel",
            "add_prefix_space": False,
            "trim_offsets": True,
            "use_regex": True,
        },
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


def _encode(folder: Path, text: str, **metadata: Any) -> list[str]:
    _tokenizer(folder)
    convert.mend_tokenizer(folder, {f"tokenizer.ggml.{k}": v for k, v in metadata.items()})
    return Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text).tokens


def test_first_token_is_added_where_the_file_says_so(tmp_path: Path) -> None:
    assert _encode(tmp_path, "a", add_bos_token=True, bos_token_id=0) == ["<s>", "a"]


def test_last_token_is_added_where_the_file_says_so(tmp_path: Path) -> None:
    said = {"add_bos_token": True, "bos_token_id": 0, "add_eos_token": True, "eos_token_id": 1}
    assert _encode(tmp_path, "a", **said) == ["<s>", "a", "</s>"]


def test_no_token_is_added_where_the_file_says_no(tmp_path: Path) -> None:
    assert _encode(tmp_path, "a", add_bos_token=False, bos_token_id=0) == ["a"]


@pytest.mark.parametrize(
    ("pre", "tokens"),
    [
        ("smollm", ["1", "2", "a"]),
        ("qwen2", ["1", "2", "a"]),
        ("llama-bpe", ["12", "a"]),
        ("unheard-of", ["12", "a"]),
    ],
)
def test_text_is_cut_as_the_model_s_own_tokenizer_does(
    tmp_path: Path, pre: str, tokens: list[str]
) -> None:
    assert _encode(tmp_path, "12a", pre=pre, model="gpt2") == tokens


def test_every_end_token_ends_generation(tmp_path: Path) -> None:
    names = {"eos": 2, "eot": 7, "eom": 2, "bos": 1, "padding": 0}
    metadata = {f"tokenizer.ggml.{name}_token_id": token for name, token in names.items()}
    convert.mend_generation_config(tmp_path, metadata)
    config = json.loads((tmp_path / "generation_config.json").read_text())
    assert config == {"eos_token_id": [2, 7], "bos_token_id": 1, "pad_token_id": 0}
