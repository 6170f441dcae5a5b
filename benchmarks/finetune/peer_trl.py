"""TRL's SFTTrainer with PEFT: ``python -m benchmarks.finetune.peer_trl TASK.json``.

Needs trl beside torch, transformers and peft (a virtual environment of its own). It is given the
examples as tokens with the same assistant mask, in the order of our steps. Variants: ``stock``
is SFTConfig as it comes; ``tuned`` has recomputation off and the base in bfloat16.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset  # pyright: ignore[reportMissingImports]
from peft import LoraConfig
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer  # pyright: ignore[reportMissingImports]

from benchmarks.finetune.sides import Result, Task, count_tokens, result_line


class _Clock(TrainerCallback):
    def __init__(self) -> None:
        self.began = (0.0, 0.0)
        self.took = (0.0, 0.0)

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.began = (time.perf_counter(), time.process_time())

    def on_step_end(self, *_: Any, **__: Any) -> None:
        now = (time.perf_counter(), time.process_time())
        self.took = (now[0] - self.began[0], now[1] - self.began[1])


def main() -> None:
    """Train, print the result."""
    task = Task(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    torch.set_num_threads(task.num_threads)
    with Path(task.examples).open(encoding="utf-8") as lines:
        dataset = Dataset.from_list([json.loads(line) for line in lines])
    tuned: dict[str, Any] = {
        "gradient_checkpointing": False,
        "model_init_kwargs": {"dtype": "bfloat16"},
    }
    config = SFTConfig(
        output_dir=task.out,
        use_cpu=not torch.cuda.is_available(),
        num_train_epochs=1,
        per_device_train_batch_size=task.batch_size,
        learning_rate=task.learning_rate,
        max_length=task.max_length,
        train_sampling_strategy="sequential",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=task.seed,
        **(tuned if task.variant == "tuned" else {}),
    )
    clock = _Clock()
    trainer = SFTTrainer(
        model=task.model_dir,
        args=config,
        train_dataset=dataset,
        peft_config=LoraConfig(
            task_type="CAUSAL_LM",
            r=task.r,
            lora_alpha=task.lora_alpha,
            target_modules="all-linear",
        ),
        callbacks=[clock],
    )
    trainer.train()
    trainer.save_model(task.out)
    tokens = count_tokens(Path(task.examples))
    print(result_line(Result(tokens, *clock.took, task.out)))


if __name__ == "__main__":
    main()
