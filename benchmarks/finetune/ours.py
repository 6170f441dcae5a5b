"""Our side: ``python -m benchmarks.finetune.ours TASK.json``."""

import json
import sys
import time
from pathlib import Path

from benchmarks.finetune.sides import Result, Task, count_tokens, result_line
from maas.finetune.recipe import Recipe
from maas.finetune.train.loop import limit_threads, train
from maas.finetune.train.spec import CheckpointReport, StepReport, TrainSpec


class _Clock:
    """Times the steps; the model's loading is in neither side's figures."""

    def __init__(self) -> None:
        self.train_s = 0.0
        self.cpu_s = 0.0
        # With the model's loading: to our disadvantage.
        self._cpu_began = time.process_time()

    def on_step(self, step: StepReport) -> bool:
        self.train_s = step.num_trained_tokens / step.tokens_per_s
        self.cpu_s = time.process_time() - self._cpu_began
        return True

    def on_validation(self, metrics: dict[str, float]) -> None:
        pass

    def on_checkpoint(self, checkpoint: CheckpointReport) -> None:
        pass

    def flush(self) -> None:
        pass


def main() -> None:
    """Train, print the result."""
    task = Task(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    limit_threads(task.num_threads)
    recipe = Recipe(
        name="speed",
        description="The same as the peer's.",
        method="supervised",
        tuning="lora",
        r=task.r,
        lora_alpha=task.lora_alpha,
        learning_rate=task.learning_rate,
        lr_scheduler="linear",
        warmup_ratio=0.0,
    )
    clock = _Clock()
    outcome = train(
        TrainSpec(
            run_dir=Path(task.out),
            model_dir=Path(task.model_dir),
            train_file=Path(task.chats),
            method="supervised",
            recipe=recipe,
            n_epochs=task.n_epochs,
            batch_size=task.batch_size,
            learning_rate=task.learning_rate,
            seed=task.seed,
            max_length=task.max_length,
        ),
        clock,
    )
    tokens = count_tokens(Path(task.examples))
    if tokens != outcome.num_trained_tokens:
        sys.exit(f"trained on {outcome.num_trained_tokens} tokens, the peer on {tokens}")
    print(result_line(Result(tokens, clock.train_s, clock.cpu_s, str(outcome.output_dir))))


if __name__ == "__main__":
    main()
