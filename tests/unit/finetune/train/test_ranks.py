"""Two workers that share each step learn what one learns alone."""

import json
import os
import socket
import subprocess
import sys

import pytest
from safetensors.torch import load_file

from maas.core.errors import TrainingFailed
from maas.finetune.train.loop import train
from tests.conftest import REPOSITORY
from tests.unit.finetune.conftest import chats
from tests.unit.finetune.train.test_loop import Heard

WORKER = """
import sys, torch, torch.distributed as dist
from pathlib import Path
from maas.finetune.train.worker import train_loop_per_worker, _Printer
torch.set_num_threads(1)
dist.init_process_group("gloo")
class Reporter(_Printer):
    def on_step(self, step):
        return super().on_step(step) and step.step != int(sys.argv[2])
    def on_outcome(self, outcome):
        print(outcome.model_dump_json(), flush=True)
import json
spec = json.loads(Path(sys.argv[1]).read_text())
train_loop_per_worker({"spec": spec, "reporter": Reporter()})
dist.destroy_process_group()
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def preferences(count):
    return [
        {
            "input": {"messages": chat["messages"][:-1]},
            "preferred_output": [{"role": "assistant", "content": f"yes {number}"}],
            "non_preferred_output": [{"role": "assistant", "content": f"no {number}"}],
        }
        for number, chat in enumerate(chats(count))
    ]


def run_together(spec, tmp_path, stop_after=0):
    """Run a spec in two workers; return what each said, by line."""
    spec_file = tmp_path / "spec.json"
    spec_file.write_text(spec.model_dump_json())
    port = str(free_port())
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(spec_file), str(stop_after)],
            cwd=REPOSITORY,
            env={
                **os.environ,
                **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"},
                **{"RANK": str(rank), "PYTHONWARNINGS": "ignore"},
            },
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [worker.communicate(timeout=240)[0].splitlines() for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0]
    return said


def losses_of(lines):
    steps = [json.loads(line) for line in lines if '"num_steps"' in line]
    return [(step["step"], pytest.approx(step["loss"], rel=2e-3)) for step in steps]


def test_two_workers_have_the_losses_of_one(make_spec, tmp_path):
    alone = Heard()
    # A last step of one example: one worker has no part in it.
    train(make_spec(run="alone", batch_size=11), alone)
    first, second = run_together(make_spec(run="together", batch_size=11), tmp_path)
    assert alone.losses == losses_of(first)
    steps = [json.loads(line) for line in first if '"num_steps"' in line]
    assert steps[-1]["num_trained_tokens"] == alone.steps[-1].num_trained_tokens
    assert json.loads(first[-1])["status"] == "finished"
    # The second one reports nothing and writes nothing.
    assert not any('"step"' in line for line in second)


@pytest.mark.parametrize(
    ("method", "tuning"),
    [
        pytest.param("supervised", "lora", marks=pytest.mark.slow),
        pytest.param("dpo", "lora", marks=pytest.mark.slow),
        ("supervised", "full"),
    ],
)
def test_weights_split_over_two_workers_have_the_losses_of_one(method, tuning, make_spec, tmp_path):
    records = preferences(12) if method == "dpo" else chats(12)
    fields = {"method": method, "batch_size": 11, "recipe": {"tuning": tuning}}
    # Several passes a step, and not as many on each worker.
    fields |= {"max_tokens_per_pass": 64, "strategy": "fsdp"}
    alone = Heard()
    one = train(make_spec(records, run="alone", **fields), alone)
    first, _ = run_together(make_spec(records, run="together", **fields), tmp_path)
    assert alone.losses == losses_of(first)
    name = "model.safetensors" if tuning == "full" else "adapter_model.safetensors"
    ours = load_file(json.loads(first[-1])["output_dir"] + "/" + name)
    theirs = load_file(one.output_dir / name)
    assert ours.keys() == theirs.keys()
    for key, weights in theirs.items():
        assert (ours[key] - weights).norm() <= 0.05 * weights.norm(), key


@pytest.mark.slow
def test_run_of_split_weights_goes_on_exactly(make_spec, tmp_path):
    fields = {"recipe": {"tuning": "full"}, "strategy": "fsdp", "learning_rate": 1e-3}
    whole, _ = run_together(make_spec(run="whole", **fields), tmp_path)
    spec = make_spec(run="stopped", **fields)
    before, _ = run_together(spec, tmp_path, stop_after=4)
    after, _ = run_together(spec, tmp_path)
    told = [json.loads(line) for line in before + after if '"num_steps"' in line]
    losses = [(step["step"], step["loss"]) for step in told]
    assert losses == [(step, loss.expected) for step, loss in losses_of(whole)]
    # One worker cannot go on with half of the weights.
    with pytest.raises(TrainingFailed, match="2 workers"):
        train(spec, Heard())
