"""What both sides are told and tell: one JSON file in, one JSON line out."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Task:
    """One training, the same for every side.

    Attributes:
        examples: ``{"input_ids", "assistant_masks"}`` of every step, in order.
        batch_size: Examples of a step.
    """

    model_dir: str
    chats: str
    examples: str
    out: str
    batch_size: int
    n_epochs: int
    learning_rate: float
    max_length: int
    num_threads: int
    variant: str = "stock"
    r: int = 8
    lora_alpha: int = 16
    seed: int = 0

    def plain(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return asdict(self)


@dataclass(frozen=True)
class Result:
    """What one training took.

    Attributes:
        num_tokens: Real tokens that were trained on, no padding.
        train_s: Wall time of the steps alone.
        cpu_s: Processor time of the steps.
        adapter: Folder of the adapter.
    """

    num_tokens: int
    train_s: float
    cpu_s: float
    adapter: str

    @property
    def tokens_per_s(self) -> float:
        """Real tokens a second."""
        return self.num_tokens / self.train_s


def result_line(result: Result) -> str:
    """Return a line that the driver finds among others."""
    return "RESULT " + json.dumps(asdict(result))


def count_tokens(examples: Path) -> int:
    """Return the tokens of all examples of a task."""
    with examples.open(encoding="utf-8") as lines:
        return sum(len(json.loads(line)["input_ids"]) for line in lines)
