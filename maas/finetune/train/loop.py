"""The training loop: steps, validations, checkpoints; stops when told, goes on exactly.

What a step does depends on the spec, its number and the state of a checkpoint, on nothing else:
a run that was killed and goes on has the same losses as one that was not.
"""

import json
import logging
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from maas.core.errors import TrainingFailed
from maas.finetune.data.rendering import Renderer
from maas.finetune.train.checkpoints import Checkpoints
from maas.finetune.train.examples import num_tokens_of, read_examples
from maas.finetune.train.memory import hold_freed_memory, must_recompute
from maas.finetune.train.model import TrainedModel, choose_device
from maas.finetune.train.objectives import Example, Seen, objective_of
from maas.finetune.train.optimizer import MasterAdamW
from maas.finetune.train.packing import batches, steps_per_epoch
from maas.finetune.train.ranks import Ranks
from maas.finetune.train.shards import Shards
from maas.finetune.train.spec import (
    CheckpointReport,
    Reporter,
    StepReport,
    TrainOutcome,
    TrainSpec,
)

log = logging.getLogger(__name__)

# A run that is killed loses at most this much of its work, epochs apart.
CHECKPOINT_EVERY_S = 60.0
NUM_GOLDEN = 4


def train(spec: TrainSpec, reporter: Reporter) -> TrainOutcome:
    """Train, or go on from the newest checkpoint.

    Args:
        spec: What to do.
        reporter: Hears of steps and checkpoints; says when to stop.

    Raises:
        DataRefused: An example cannot be learned from.
        TrainingFailed: The loss is no number any more.
        DiskFull: No room for a checkpoint.
    """
    hold_freed_memory()
    return _Run(spec, reporter).run()


class _Run:
    def __init__(self, spec: TrainSpec, reporter: Reporter) -> None:
        self._spec = spec
        self._reporter = reporter
        renderer = Renderer(spec.model_dir)
        self._examples = self._read(spec.train_file, renderer)
        self._validation = self._read(spec.validation_file, renderer)
        self._steps_per_epoch = steps_per_epoch(len(self._examples), spec.batch_size)
        self._num_steps = self._steps_per_epoch * spec.n_epochs
        device = choose_device()
        self._ranks = Ranks.current(device)
        is_split = spec.strategy == "fsdp" and self._ranks.size > 1
        self._model = TrainedModel(
            spec.model_dir,
            spec.recipe,
            device,
            spec.seed,
            shards=Shards(self._ranks.size, device) if is_split else None,
        )
        if spec.start_from is not None:
            self._model.begin_with(spec.start_from)
        if must_recompute(self._model, spec.max_tokens_per_pass):
            self._model.enable_recomputation()
        self._objective = objective_of(spec.method, beta=spec.beta)
        self._optimizer = MasterAdamW(
            self._model.trained(),
            spec.recipe,
            learning_rate=spec.learning_rate,
            num_steps=self._num_steps,
        )
        self._checkpoints = Checkpoints(spec.run_dir)
        self._num_tokens = 0
        # Since this process began: what its speed is measured by.
        self._num_tokens_here = 0
        self._began = time.monotonic()
        self._saved_at = time.monotonic()
        # Of the epoch so far: what a checkpoint says it was trained to.
        self._epoch = Seen()

    def _read(self, file: Path | None, renderer: Renderer) -> list[Example]:
        spec = self._spec
        if file is None:
            return []
        return read_examples(file, renderer, method=spec.method, max_length=spec.max_length)

    def run(self) -> TrainOutcome:
        done = self._restore()
        self._began = self._saved_at = time.monotonic()
        for step, indices in self._plan(done):
            seen = self._step(step, indices)
            is_last_of_epoch = step % self._steps_per_epoch == 0
            may_go_on = self._tell(step, seen)
            validated = self._validate(step) if is_last_of_epoch else {}
            is_due = is_last_of_epoch or not may_go_on or self._is_time_to_save()
            if self._model.is_split:
                self._save_part(step, validated, is_due=is_due, is_kept=is_last_of_epoch)
            elif self._ranks.is_first and is_due:
                self._save(step, validated, is_kept=is_last_of_epoch)
            if is_last_of_epoch:
                self._epoch = Seen()
            if is_last_of_epoch and self._ranks.first_says(self._is_hopeless()):
                break
            if not may_go_on and step < self._num_steps:
                return TrainOutcome(status="stopped", num_trained_tokens=self._num_tokens)
        return self._finish()

    def _tell(self, step: int, seen: Seen) -> bool:
        """Report a step; say whether to go on."""
        is_first = self._ranks.is_first
        may_go_on = self._reporter.on_step(self._report(step, seen)) if is_first else True
        return self._ranks.first_says(may_go_on)

    def _plan(self, done: int) -> Sequence[tuple[int, list[int]]]:
        """Return number and examples of each step that is left."""
        plan: list[tuple[int, list[int]]] = []
        spec = self._spec
        for epoch in range(spec.n_epochs):
            order = batches(len(self._examples), spec.batch_size, seed=spec.seed, epoch=epoch)
            first = epoch * self._steps_per_epoch + 1
            plan += [(first + n, indices) for n, indices in enumerate(order)]
        if done and done % self._steps_per_epoch == 0 and self._is_hopeless():
            return []
        return plan[done:]

    def _step(self, step: int, indices: Sequence[int]) -> Seen:
        ranks = self._ranks
        chosen = [self._examples[i] for i in indices]
        own = [self._examples[i] for i in ranks.share(indices)]
        scale = 1.0 / max(self._objective.num_items(chosen), 1)
        # What is drawn (dropout) depends on nothing that came before: no state to keep.
        torch.manual_seed((self._spec.seed * 1_000_003 + step) * ranks.size + ranks.rank)
        seen = ranks.total(
            self._objective.run(self._model, own, self._spec.max_tokens_per_pass, scale)
        )
        if not math.isfinite(seen.loss):
            raise TrainingFailed(
                f"the loss of step {step} is no number; lower learning_rate_multiplier"
            )
        self._optimizer.step(step, ranks)
        self._epoch.add(seen)
        num_tokens = sum(num_tokens_of(example) for example in chosen)
        self._num_tokens += num_tokens
        self._num_tokens_here += num_tokens
        return seen

    def _report(self, step: int, seen: Seen) -> StepReport:
        elapsed = max(time.monotonic() - self._began, 1e-6)
        speed = self._num_tokens_here / elapsed
        per_epoch = sum(num_tokens_of(example) for example in self._examples)
        left = max(per_epoch * self._spec.n_epochs - self._num_tokens, 0)
        return StepReport(
            step=step,
            num_steps=self._num_steps,
            epoch=step / self._steps_per_epoch,
            loss=seen.mean_loss,
            mean_token_accuracy=seen.accuracy,
            tokens_per_s=speed,
            num_trained_tokens=self._num_tokens,
            eta_s=left / speed,
        )

    def _is_time_to_save(self) -> bool:
        return time.monotonic() - self._saved_at >= CHECKPOINT_EVERY_S

    def _save_part(
        self, step: int, validated: dict[str, float], *, is_due: bool, is_kept: bool
    ) -> None:
        """Save, every worker its part of what is split, when the first one finds it is time."""
        if not self._ranks.first_says(is_due):
            return
        weights = self._model.gather()
        if not self._ranks.is_first:
            self._checkpoints.save_part(step, self._ranks.rank, self._state(is_kept=is_kept))
        self._ranks.wait()
        if self._ranks.is_first:
            self._save(step, validated, is_kept=is_kept, weights=weights)
        # Whoever looks for the best or the newest one finds it.
        self._ranks.wait()

    def _state(self, *, is_kept: bool) -> dict[str, Any]:
        epoch = {name: getattr(self._epoch, name) for name in Seen.__dataclass_fields__}
        return {
            "optimizer": self._optimizer.state(),
            "num_tokens": self._num_tokens,
            "epoch": Seen().__dict__ if is_kept else epoch,
            "is_kept": is_kept,
            "num_parts": self._ranks.size if self._model.is_split else 1,
        }

    def _save(
        self,
        step: int,
        validated: dict[str, float],
        *,
        is_kept: bool,
        weights: dict[str, torch.Tensor] | None = None,
    ) -> None:
        metrics: dict[str, float] = {
            "step": step,
            "train_loss": self._epoch.mean_loss,
            "train_mean_token_accuracy": self._epoch.accuracy,
            **validated,
        }
        # A run goes on after its newest checkpoint: steps before it are never told again.
        self._reporter.flush()
        path = self._checkpoints.save(
            step,
            write_model=lambda folder: self._model.save(
                folder,
                self._optimizer.masters,
                weights,
                dtype=getattr(torch, self._spec.golden_dtype),
            ),
            state=self._state(is_kept=is_kept),
            metrics={**metrics, "is_kept": is_kept},
        )
        if is_kept:
            self._reporter.on_checkpoint(CheckpointReport(step=step, path=path, metrics=metrics))
        self._prune()
        self._saved_at = time.monotonic()

    def _prune(self) -> None:
        steps = self._checkpoints.steps()
        kept = self._kept()
        keep = {*kept[-self._spec.recipe.num_checkpoints :], *steps[-1:]}
        best = self._best()
        self._checkpoints.prune(keep=keep if best is None else {*keep, best})

    def _kept(self) -> list[int]:
        metrics = self._checkpoints.metrics
        return [step for step in self._checkpoints.steps() if metrics(step)["is_kept"]]

    def _validate(self, step: int) -> dict[str, float]:
        if not self._validation:
            return {}
        self._model.module.eval()
        own = [self._validation[i] for i in self._ranks.share(range(len(self._validation)))]
        seen = self._ranks.total(
            self._objective.run(self._model, own, self._spec.max_tokens_per_pass, None)
        )
        self._model.module.train()
        metrics = {
            "step": step,
            "valid_loss": seen.mean_loss,
            "valid_mean_token_accuracy": seen.accuracy,
            "full_valid_loss": seen.mean_loss,
            "full_valid_mean_token_accuracy": seen.accuracy,
        }
        if self._ranks.is_first:
            self._reporter.on_validation(metrics)
        return metrics

    def _best(self) -> int | None:
        """Return the step with the best validation; without one, the last kept."""
        kept = self._kept()
        if not kept:
            return None
        losses = {step: self._checkpoints.metrics(step).get("valid_loss") for step in kept}
        known = {step: loss for step, loss in losses.items() if loss is not None}
        return min(known, key=lambda step: (known[step], step)) if known else kept[-1]

    def _is_hopeless(self) -> bool:
        """Say whether validation got no better for so long that training should end."""
        patience = self._spec.recipe.early_stopping_patience
        best = self._best()
        if patience is None or best is None or not self._validation:
            return False
        newest = self._checkpoints.steps()[-1]
        return newest - best >= patience * self._steps_per_epoch

    def _restore(self) -> int:
        found = self._checkpoints.load_newest(self._ranks.rank if self._model.is_split else 0)
        self._ranks.wait()
        if found is None:
            return 0
        step, state = found
        for kept in self._kept() if self._ranks.is_first else ():
            # Whoever was killed may not have been told.
            path, metrics = self._checkpoints.path(kept), self._checkpoints.metrics(kept)
            del metrics["is_kept"]
            self._reporter.on_checkpoint(CheckpointReport(step=kept, path=path, metrics=metrics))
        num_parts = self._ranks.size if self._model.is_split else 1
        if state["num_parts"] != num_parts:
            raise TrainingFailed(
                f"the checkpoint was written by {state['num_parts']} workers that split the "
                f"weights, not {num_parts}: finetune.num_workers and strategy changed under way"
            )
        self._optimizer.load_state(state["optimizer"])
        self._num_tokens = int(state["num_tokens"])
        self._epoch = Seen(**state["epoch"])
        log.info("going on after step %d", step)
        return step

    def _finish(self) -> TrainOutcome:
        self._ranks.wait()
        best = self._best()
        if best is None:
            raise TrainingFailed("training ended without a checkpoint")
        metrics: dict[str, Any] = self._checkpoints.metrics(best)
        return TrainOutcome(
            status="finished",
            num_trained_tokens=self._num_tokens,
            best_step=best,
            output_dir=self._checkpoints.path(best),
            metrics={name: value for name, value in metrics.items() if name != "is_kept"},
        )


def golden_chats(spec: TrainSpec) -> list[list[dict[str, Any]]]:
    """Return the prompts of the first examples: what the tuned model will be asked."""
    if spec.method != "supervised":
        return []
    chats: list[list[dict[str, Any]]] = []
    with spec.train_file.open(encoding="utf-8-sig") as stream:
        for line in stream:
            messages = json.loads(line)["messages"] if line.strip() else []
            turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
            if turns and turns[0] > 0:
                chats.append(messages[: turns[0]])
            if len(chats) == NUM_GOLDEN:
                break
    return chats


def limit_threads(num_threads: int) -> None:
    """Compute on so many threads: the number decides the order of sums, so it is part of a run."""
    torch.set_num_threads(num_threads)
