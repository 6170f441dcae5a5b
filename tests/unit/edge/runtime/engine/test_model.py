"""``genai_config.json``: what describes no decoder that there is says so, in one line."""

import json
from pathlib import Path
from typing import Any

import pytest

from maas.core.errors import ConfigError
from maas.edge.runtime.engine.model import read_config


def write_config(folder: Path, model: dict[str, Any], decoder: dict[str, Any]) -> None:
    inputs = {"past_key_names": "past.%d.key", "past_value_names": "past.%d.value"}
    outputs = {"present_key_names": "present.%d.key", "present_value_names": "present.%d.value"}
    inputs |= decoder.pop("inputs", {})
    full = {"filename": "model.onnx", "num_hidden_layers": 2, "head_size": 16, **decoder}
    full |= {"inputs": inputs, "outputs": outputs}
    sizes = {"context_length": 512, "vocab_size": 288, "eos_token_id": [257, 1], **model}
    (folder / "genai_config.json").write_text(json.dumps({"model": {**sizes, "decoder": full}}))


def test_a_decoder_is_read(tmp_path: Path) -> None:
    write_config(tmp_path, {}, {})
    config = read_config(tmp_path)
    assert (config.vocab_size, config.num_layers, config.file_name) == (288, 2, "model.onnx")
    assert config.eos_token_ids == {1, 257}


@pytest.mark.parametrize(
    ("model", "decoder"),
    [
        ({"vocab_size": 10**15}, {}),
        ({"vocab_size": -1}, {}),
        ({"vocab_size": float("inf")}, {}),
        ({"context_length": 10**15}, {}),
        ({"eos_token_id": []}, {}),
        ({"eos_token_id": [[1]]}, {}),
        ({"eos_token_id": -1}, {}),
        ({}, {"num_hidden_layers": 10**9}),
        ({}, {"head_size": 0}),
        ({}, {"filename": "/x/model.onnx"}),
        ({}, {"filename": "../model.onnx"}),
        ({}, {"filename": ".."}),
        ({}, {"inputs": {"past_key_names": "%s %s"}}),
        ({}, {"inputs": {"past_key_names": "%999999999d"}}),
        ({}, {"inputs": {"past_value_names": "past"}}),
    ],
)
def test_a_decoder_that_there_is_not_is_refused(
    tmp_path: Path, model: dict[str, Any], decoder: dict[str, Any]
) -> None:
    write_config(tmp_path, model, decoder)
    with pytest.raises(ConfigError, match="not the configuration of a decoder"):
        read_config(tmp_path)
