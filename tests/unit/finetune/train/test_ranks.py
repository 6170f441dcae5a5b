"""Two workers that share each step learn what one learns alone."""

import json
import os
import socket
import subprocess
import sys

import pytest

from maas.finetune.train.loop import train
from tests.conftest import REPOSITORY
from tests.unit.finetune.train.test_loop import Heard

WORKER = """
import sys, torch, torch.distributed as dist
from pathlib import Path
from maas.finetune.train.worker import train_loop_per_worker, _Printer
torch.set_num_threads(1)
dist.init_process_group("gloo")
class Reporter(_Printer):
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


def test_two_workers_have_the_losses_of_one(make_spec, tmp_path):
    alone = Heard()
    # A last step of one example: one worker has no part in it.
    train(make_spec(run="alone", batch_size=11), alone)
    spec_file = tmp_path / "spec.json"
    spec_file.write_text(make_spec(run="together", batch_size=11).model_dump_json())
    port = str(free_port())
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(spec_file)],
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
    first, second = (worker.communicate(timeout=240)[0].splitlines() for worker in workers)
    assert [worker.returncode for worker in workers] == [0, 0]
    steps = [json.loads(line) for line in first if '"num_steps"' in line]
    assert [step["step"] for step in steps] == [step.step for step in alone.steps]
    losses = [step["loss"] for step in steps]
    assert losses == pytest.approx([step.loss for step in alone.steps], rel=2e-3)
    assert steps[-1]["num_trained_tokens"] == alone.steps[-1].num_trained_tokens
    assert json.loads(first[-1])["status"] == "finished"
    # The second one reports nothing and writes nothing.
    assert not any('"step"' in line for line in second)
