"""The loop learns, stops when told, and goes on exactly, also after kill -9."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from maas.core.errors import DataRefused, TrainingFailed
from maas.finetune.train.checkpoints import Checkpoints
from maas.finetune.train.loop import train
from tests.conftest import REPOSITORY
from tests.unit.finetune.conftest import chats


class Heard:
    """A reporter that keeps what it hears, and says no after some step."""

    def __init__(self, stop_after=None):
        self.steps, self.validations, self.checkpoints = [], [], []
        self._stop_after = stop_after

    def on_step(self, step):
        self.steps.append(step)
        return step.step != self._stop_after

    def flush(self):
        self.flushed = len(self.steps)

    def on_validation(self, metrics):
        self.validations.append(metrics)

    def on_checkpoint(self, checkpoint):
        self.checkpoints.append(checkpoint)

    @property
    def losses(self):
        return [(step.step, step.loss) for step in self.steps]


def test_loss_falls_and_every_token_is_counted(make_spec):
    heard = Heard()
    spec = make_spec(n_epochs=8, recipe={"tuning": "full"})
    outcome = train(spec, heard)
    assert heard.steps[-1].loss < heard.steps[0].loss * 0.8
    assert [step.step for step in heard.steps] == list(range(1, 25))
    assert outcome.num_trained_tokens == heard.steps[-1].num_trained_tokens
    assert outcome.num_trained_tokens % 8 == 0
    assert outcome.num_trained_tokens > 8 * 12 * 20


def test_run_that_stops_and_goes_on_has_the_same_losses_and_weights(make_spec):
    whole = Heard()
    first = train(make_spec(run="whole"), whole)
    # In mid epoch, and at its end.
    for stop_after in (1, 3):
        spec = make_spec(run=f"stopped-{stop_after}")
        before, after = Heard(stop_after), Heard()
        assert train(spec, before).status == "stopped"
        second = train(spec, after)
        assert before.losses + after.losses == whole.losses
        assert second.num_trained_tokens == first.num_trained_tokens
        ours = load_file(second.output_dir / "adapter_model.safetensors")
        theirs = load_file(first.output_dir / "adapter_model.safetensors")
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_run_with_dropout_goes_on_exactly_too(make_spec):
    whole, before, after = Heard(), Heard(2), Heard()
    recipe = {"lora_dropout": 0.3}
    train(make_spec(run="whole", recipe=recipe), whole)
    spec = make_spec(run="stopped", recipe=recipe)
    train(spec, before)
    train(spec, after)
    assert before.losses + after.losses == whole.losses


def test_run_killed_at_random_has_the_same_losses_as_one_that_was_not(make_spec, tmp_path):
    whole = Heard()
    train(make_spec(run="whole", n_epochs=6), whole)
    spec = make_spec(run="killed", n_epochs=6)
    spec_file = tmp_path / "spec.json"
    spec_file.write_text(spec.model_dump_json())
    drawn = random.Random(11)
    told: dict[int, float] = {}
    num_kills = 0
    while True:
        with subprocess.Popen(
            [sys.executable, "-m", "maas.finetune.train.worker", str(spec_file)],
            cwd=REPOSITORY,
            env={**os.environ, "PYTHONWARNINGS": "ignore"},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        ) as worker:
            until = drawn.randint(1, 7) if num_kills < 3 else None
            ended = read_losses(worker, told, until)
        if ended:
            break
        num_kills += 1
    assert num_kills == 3
    assert sorted(told.items()) == whole.losses


def read_losses(worker, told, until) -> bool:
    """Take down the losses a worker tells; kill it after some steps; say whether it finished."""
    heard = 0
    for line in worker.stdout:
        if '"num_steps"' in line:
            step = json.loads(line)
            assert told.setdefault(step["step"], step["loss"]) == step["loss"]
            heard += 1
        if until is not None and heard >= until:
            time.sleep(random.Random(heard).uniform(0, 0.05))
            worker.send_signal(signal.SIGKILL)
            # What it told before is still in the pipe, perhaps steps that it has kept.
            until = None
        if '"status":"finished"' in line:
            return True
    return False


def test_best_checkpoint_is_that_of_the_best_validation(make_spec, tmp_path):
    held = tmp_path / "held.jsonl"
    held.write_text("".join(json.dumps(chat) + "\n" for chat in chats(3)))
    heard = Heard()
    recipe = {"num_checkpoints": 2}
    # So high a rate that it gets worse after a while.
    outcome = train(
        make_spec(n_epochs=5, learning_rate=0.3, validation_file=held, recipe=recipe), heard
    )
    losses = {int(metrics["step"]): metrics["valid_loss"] for metrics in heard.validations}
    assert outcome.best_step == min(losses, key=lambda step: losses[step])
    assert outcome.metrics["valid_loss"] == min(losses.values())


def test_training_ends_when_validation_gets_no_better(make_spec, tmp_path):
    held = tmp_path / "held.jsonl"
    held.write_text(json.dumps(chats(40)[-1]) + "\n")
    recipe = {"early_stopping_patience": 1}
    heard = Heard()
    outcome = train(
        make_spec(n_epochs=20, learning_rate=0.5, validation_file=held, recipe=recipe), heard
    )
    assert outcome.status == "finished"
    assert len(heard.steps) < 60
    again = Heard()
    # Going on with what is over changes nothing.
    assert (
        train(
            make_spec(n_epochs=20, learning_rate=0.5, validation_file=held, recipe=recipe), again
        ).best_step
        == outcome.best_step
    )
    assert again.steps == []


def test_only_the_last_checkpoints_and_one_state_are_kept(make_spec):
    spec = make_spec(n_epochs=5, recipe={"num_checkpoints": 2})
    train(spec, Heard())
    kept = Checkpoints(spec.run_dir)
    assert kept.steps() == [12, 15]
    assert [(kept.path(step) / "state.pt").exists() for step in kept.steps()] == [False, True]


def test_loss_that_is_no_number_ends_the_run_in_words(make_spec):
    with pytest.raises(TrainingFailed, match="learning_rate_multiplier"):
        train(make_spec(n_epochs=30, learning_rate=1e18), Heard())


def test_example_that_is_too_long_is_named(make_spec):
    long = chats(1)[0]
    long["messages"][0]["content"] = "word " * 600
    with pytest.raises(DataRefused, match="line 2"):
        train(make_spec([*chats(1), long]), Heard())


def test_full_tuning_moves_all_weights_and_goes_on_exactly(make_spec):
    recipe = {"tuning": "full"}
    whole, before, after = Heard(), Heard(4), Heard()
    outcome = train(make_spec(run="whole", recipe=recipe, learning_rate=1e-3), whole)
    spec = make_spec(run="stopped", recipe=recipe, learning_rate=1e-3)
    train(spec, before)
    train(spec, after)
    assert before.losses + after.losses == whole.losses
    assert whole.steps[-1].loss < whole.steps[0].loss
    assert (outcome.output_dir / "model.safetensors").exists()


def test_dpo_learns_to_prefer(make_spec):
    pairs = [
        {
            "input": {"messages": [{"role": "user", "content": f"Say {n}."}]},
            "preferred_output": [{"role": "assistant", "content": "yes yes"}],
            "non_preferred_output": [{"role": "assistant", "content": "no no"}],
        }
        for n in range(12)
    ]
    heard = Heard()
    train(make_spec(pairs, method="dpo", n_epochs=4, learning_rate=0.05), heard)
    # Before it moved, both answers are as likely as in the base: log 2.
    assert heard.steps[0].loss == pytest.approx(0.693147, abs=1e-3)
    assert heard.steps[-1].loss < 0.65
    assert heard.steps[-1].mean_token_accuracy == 1.0


def test_continued_pretraining_learns_every_token(make_spec):
    texts = [{"text": "the cat sat on the mat and looked at the moon " * 3} for _ in range(4)]
    heard = Heard()
    train(make_spec(texts, method="pretrain", n_epochs=8, recipe={"tuning": "full"}), heard)
    assert heard.steps[-1].loss < heard.steps[0].loss * 0.9


def test_checkpoint_that_finds_no_room_leaves_nothing(tmp_path):
    kept = Checkpoints(tmp_path)

    def fail(folder):
        (folder / "half").write_text("x")
        raise OSError(28, "No space left on device")

    with pytest.raises(Exception, match="no room"):
        kept.save(1, write_model=fail, state={}, metrics={})
    assert kept.steps() == []
    assert list((tmp_path / "checkpoints").iterdir()) == []
