"""The adapter of our onnxruntime server: what it starts, and what it refuses by name."""

from dataclasses import replace
from pathlib import Path

import pytest

from maas.core.errors import ConfigError
from maas.engines.contract import EngineSpec
from maas.engines.onnx import OnnxEngine
from maas.engines.tuning import tune
from maas.serving.options import parse_options
from tests.unit.catalog.fixtures import make_card, make_machine

SPEC = EngineSpec(
    served_model_name="m",
    model_dir=Path("form"),
    port=7,
    cpu_ids=(0, 1),
    max_model_len=512,
    max_num_seqs=3,
    kv_cache_bytes=99,
)


def test_the_command_line_says_all_of_the_spec():
    command = OnnxEngine().command(replace(SPEC, extra_engine_args=("--no-spinning",)))
    text = " ".join(command)
    for part in (
        "-m maas.edge.runtime.server form",
        "--served-model-name m",
        "--port 7",
        "--threads 2",
        "--max-num-seqs 3",
        "--max-model-len 512",
        "--kv-cache-bytes 99",
    ):
        assert part in text, text
    assert command[-1] == "--no-spinning"


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"device": "cuda"}, "device 'cuda'"),
        ({"task": "embed"}, "task 'embed'"),
        ({"tensor_parallel_size": 2}, "tensor_parallel_size"),
        ({"reasoning_parser": "deepseek_r1"}, "reasoning parser"),
        ({"tool_call_parser": "mistral"}, "tool call parser 'mistral'"),
    ],
)
def test_what_it_cannot_do_is_refused_by_name(change, what):
    with pytest.raises(ConfigError, match=what):
        OnnxEngine().command(replace(SPEC, **change))


def test_fewer_sequences_share_a_step_than_on_vllm():
    card, machine = make_card(), make_machine()
    wide, narrow = (
        tune(card, machine, parse_options({}), engine=name).max_num_seqs
        for name in ("vllm", "onnx")
    )
    assert narrow < wide
