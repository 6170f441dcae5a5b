"""Where a run begins and what comes of it: from an adapter, and to whole weights."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from maas.core.errors import ConfigError
from maas.finetune.receipt.parity import measure
from maas.finetune.train.loop import train
from maas.finetune.train.spec import golden_file, read_outcome
from maas.finetune.train.worker import train_loop_per_worker
from maas.finetune.whole_weights import weights_id
from tests.unit.finetune.train.test_loop import Heard

PAIRS = [
    {
        "input": {"messages": [{"role": "user", "content": f"What is number {n} called?"}]},
        "preferred_output": [{"role": "assistant", "content": f"Number {n} is aaa."}],
        "non_preferred_output": [{"role": "assistant", "content": "No."}],
    }
    for n in range(12)
]


@pytest.fixture
def parent(make_spec) -> Path:
    """An adapter that learned something."""
    return train(make_spec(run="parent", n_epochs=6), Heard()).output_dir


def first_loss(spec) -> float:
    heard = Heard(stop_after=1)
    train(spec, heard)
    return heard.steps[0].loss


def rescaled(parent: Path, folder: Path, **config) -> Path:
    """Write the same adapter with another factor in front of it."""
    folder.mkdir()
    old = json.loads((parent / "adapter_config.json").read_text())
    new = old | config
    scaling = [
        c["lora_alpha"] / (math.sqrt(c["r"]) if c.get("use_rslora") else c["r"]) for c in (old, new)
    ]
    tensors = load_file(parent / "adapter_model.safetensors")
    for name, tensor in tensors.items():
        if ".lora_B." in name:
            tensor.mul_(scaling[0] / scaling[1])
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(new))
    return folder


def test_run_goes_on_where_its_parent_ended_and_resumes_exactly(make_spec, parent):
    fresh = first_loss(make_spec(run="fresh"))
    whole = Heard()
    train(make_spec(run="on", start_from=parent), whole)
    assert whole.steps[0].loss < fresh - 0.2
    spec, before, after = make_spec(run="stopped", start_from=parent), Heard(2), Heard()
    train(spec, before)
    train(spec, after)
    assert before.losses + after.losses == whole.losses


@pytest.mark.parametrize("config", [{"lora_alpha": 32}, {"lora_alpha": 8, "use_rslora": True}])
def test_parent_changes_what_it_changed_whatever_it_was_scaled_by(
    make_spec, parent, tmp_path, config
):
    other = rescaled(parent, tmp_path / "rescaled", **config)
    ours = first_loss(make_spec(run="rescaled-run", start_from=other))
    theirs = first_loss(make_spec(run="plain-run", start_from=parent))
    assert ours == pytest.approx(theirs, rel=2e-3)


def test_dpo_after_supervised_compares_with_the_parent(make_spec, parent):
    spec = make_spec(PAIRS, run="dpo", method="dpo", start_from=parent, n_epochs=4)
    heard = Heard()
    train(spec, heard)
    # What is trained is what it is compared with: both answers are as likely as before.
    assert heard.steps[0].loss == pytest.approx(math.log(2), abs=1e-6)
    assert heard.steps[-1].loss < 0.6


def test_adapter_of_another_shape_is_not_gone_on_from(make_spec, parent):
    spec = make_spec(run="wider", start_from=parent, recipe={"r": 8})
    with pytest.raises(ConfigError, match="other layers"):
        train(spec, Heard())


class Kept(Heard):
    """A reporter that also keeps the outcome."""

    outcome = None

    def on_outcome(self, outcome):
        self.outcome = outcome


def run_worker(spec) -> Kept:
    heard = Kept()
    dumped = spec.model_dump(mode="json")
    train_loop_per_worker({"spec": dumped, "reporter": heard, "niceness": 0})
    return heard


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_whole_weights_are_written_as_they_are_served(make_spec, dtype, monkeypatch):
    monkeypatch.setattr("maas.finetune.receipt.golden.NUM_NEW_TOKENS", 4)
    spec = make_spec(n_epochs=2, recipe={"tuning": "full"}, golden_dtype=dtype)
    heard = run_worker(spec)
    served = heard.outcome.output_dir
    assert read_outcome(spec) == heard.outcome
    names = {path.name for path in served.iterdir()}
    assert {"config.json", "tokenizer.json", "model.safetensors"} <= names
    assert not names & {"state.pt", "metrics.json", "manifest.json"}
    # The base's own, not what training made of it.
    assert json.loads((served / "config.json").read_text()).get("use_cache", True)
    weights = load_file(served / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {getattr(torch, dtype)}
    tensor = weights["model.layers.0.mlp.down_proj.weight"]
    # The masters are saved where serving has their precision, not what training computed with.
    assert torch.equal(tensor, tensor.bfloat16().to(tensor.dtype)) == (dtype == "bfloat16")
    base = AutoModelForCausalLM.from_pretrained(str(spec.model_dir)).state_dict()
    assert any(not torch.equal(base[name].to(t.dtype), t) for name, t in weights.items())
    again = AutoModelForCausalLM.from_pretrained(str(served)).state_dict()
    assert all(torch.equal(again[name].to(t.dtype), t) for name, t in weights.items())
    receipt = measure(golden_file(spec, weights_id(served)), engine_url=None, engine_model=None)
    assert receipt.verdict == "passed", receipt.reasons
    assert receipt.legs["saved"].max_logit_difference == 0
    assert "merged" not in receipt.legs
