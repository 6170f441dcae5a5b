"""What a Ray Train worker runs."""

import fcntl
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file

from maas.core.errors import TrainingFailed
from maas.finetune.adapter_files import content_hash
from maas.finetune.receipt.golden import write_golden, write_golden_weights
from maas.finetune.train.checkpoints import Checkpoints
from maas.finetune.train.loop import golden_chats, limit_threads, train
from maas.finetune.train.spec import (
    CheckpointReport,
    Reporter,
    StepReport,
    TrainOutcome,
    TrainSpec,
    golden_file,
    outcome_file,
)
from maas.finetune.whole_weights import assemble, weights_id

NICENESS = 10


class _StopsOnSigterm:
    """A reporter that also says no once this process was asked to end."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self._is_asked = False
        signal.signal(signal.SIGTERM, self._ask)

    def _ask(self, *_: object) -> None:
        self._is_asked = True

    def on_step(self, step: StepReport) -> bool:
        may_go_on = self._reporter.on_step(step)
        return may_go_on and not self._is_asked

    def flush(self) -> None:
        self._reporter.flush()

    def on_validation(self, metrics: dict[str, float]) -> None:
        self._reporter.on_validation(metrics)

    def on_checkpoint(self, checkpoint: CheckpointReport) -> None:
        self._reporter.on_checkpoint(checkpoint)


def train_loop_per_worker(config: dict[str, Any]) -> None:
    """Train, report the outcome.

    Args:
        config: ``spec``, a dumped ``TrainSpec``; ``reporter``, a ``Reporter`` that also has
            ``on_outcome``; ``niceness``, 10 where none is given.
    """
    spec = TrainSpec.model_validate(config["spec"])
    reporter = config["reporter"]
    # Serving goes first: an engine that has requests gets the processors.
    os.nice(max(0, int(config.get("niceness", NICENESS)) - os.nice(0)))
    limit_threads(len(os.sched_getaffinity(0)))
    spec.run_dir.mkdir(parents=True, exist_ok=True)
    rank = dist.get_rank() if dist.is_initialized() else 0
    # Of several workers the first one writes. Its run folder is storage that all share.
    with (spec.run_dir / f"lock-{rank}").open("w") as lock:
        # A worker that was thought dead may live for a moment more.
        fcntl.flock(lock, fcntl.LOCK_EX)
        outcome = train(spec, reporter)
        if rank > 0:
            return
        if outcome.status == "finished":
            outcome = _finish(spec, outcome)
        reporter.on_outcome(outcome)


def _finish(spec: TrainSpec, outcome: TrainOutcome) -> TrainOutcome:
    """Write down what was made for its receipt, then that there is nothing left to do here."""
    if spec.recipe.tuning == "full":
        outcome = _finish_weights(spec, outcome)
    else:
        _write_golden(spec)
    file = outcome_file(spec)
    new = file.with_suffix(".new")
    new.write_text(outcome.model_dump_json(), encoding="utf-8")
    new.replace(file)
    return outcome


def _finish_weights(spec: TrainSpec, outcome: TrainOutcome) -> TrainOutcome:
    """Put the best checkpoint's weights together as they are served."""
    if outcome.output_dir is None:
        raise TrainingFailed("training ended without weights")
    served = spec.run_dir / "served"
    assemble(outcome.output_dir, spec.model_dir, served, dtype=spec.golden_dtype)
    write_golden_weights(
        spec.model_dir,
        served,
        lambda: _tensors_of(served),
        golden_chats(spec),
        dtype=spec.golden_dtype,
        out=golden_file(spec, weights_id(served)),
    )
    return outcome.model_copy(update={"output_dir": served})


def _tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    files = sorted(folder.glob("*.safetensors"))
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def _write_golden(spec: TrainSpec) -> None:
    """Write down what each kept adapter says, for its receipt."""
    kept = Checkpoints(spec.run_dir)
    folders = [kept.path(step) for step in kept.steps() if kept.metrics(step)["is_kept"]]
    write_golden(
        spec.model_dir,
        {folder: golden_file(spec, content_hash(folder)) for folder in folders},
        golden_chats(spec),
        dtype=spec.golden_dtype,
    )


class _Printer:
    """Tells on standard output, one JSON line each: for running a spec by hand."""

    def on_step(self, step: StepReport) -> bool:
        sys.stdout.write(step.model_dump_json() + "\n")
        sys.stdout.flush()
        return True

    def flush(self) -> None:
        sys.stdout.flush()

    def on_validation(self, metrics: dict[str, float]) -> None:
        sys.stdout.write(f"{metrics}\n")

    def on_checkpoint(self, checkpoint: CheckpointReport) -> None:
        sys.stdout.write(checkpoint.model_dump_json() + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    spec_file = Path(sys.argv[1])
    wanted = TrainSpec.model_validate_json(spec_file.read_text(encoding="utf-8"))
    ended = train(wanted, _StopsOnSigterm(_Printer()))
    sys.stdout.write(ended.model_dump_json() + "\n")
