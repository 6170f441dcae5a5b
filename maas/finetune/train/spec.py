"""What the trainer is told, and what it tells. Light: no ML library."""

from pathlib import Path
from typing import Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field

from maas.finetune.recipe import Method, Recipe

Strategy = Literal["ddp", "fsdp"]


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class TrainSpec(_Message):
    """All that decides a run: the same spec gives the same weights."""

    run_dir: Path
    """Folder of this run: ``checkpoints/step-<n>/``, and what comes of it."""
    model_dir: Path
    """Prepared weights of the base: safetensors, config, tokenizer."""
    train_file: Path
    """Checked data, JSON lines (``pretrain``: also plain text)."""
    validation_file: Path | None = None
    """The same, to validate with."""
    method: Method
    """What the data teaches."""
    recipe: Recipe
    """How."""
    n_epochs: int = Field(gt=0)
    """Times each example is seen."""
    batch_size: int = Field(gt=0)
    """Examples of one optimizer step."""
    learning_rate: float = Field(gt=0)
    """Highest learning rate."""
    beta: float = Field(default=0.1, gt=0)
    """DPO only."""
    start_from: Path | None = None
    """Folder of an adapter to go on from; none begins with one that changes nothing."""
    seed: int = 0
    """Of the order of the data and of what is drawn."""
    max_length: int = Field(gt=1)
    """Longest example in tokens."""
    max_tokens_per_pass: int = Field(default=4096, gt=1)
    """Tokens that go through the model at once; a step takes several passes where it must."""
    strategy: Strategy = "ddp"
    """Of several workers: each holds all weights, or a part of them."""
    golden_dtype: str = "float32"
    """What the tuned model will be served in: whole weights are saved and the receipt is
    measured in it."""


class StepReport(_Message):
    """One optimizer step."""

    step: int
    """From 1."""
    num_steps: int
    """Of the whole run."""
    epoch: float
    """How often the data was seen."""
    loss: float
    """Mean over the step's target tokens, natural logarithm."""
    mean_token_accuracy: float
    """Share of target tokens that were the likeliest."""
    tokens_per_s: float
    """Real tokens (no padding) since this process began to train."""
    num_trained_tokens: int
    """Of the whole run, earlier processes' too."""
    eta_s: float
    """Seconds that are left."""


class CheckpointReport(_Message):
    """A checkpoint that is on the disk, whole."""

    step: int
    """After this step."""
    path: Path
    """Its folder."""
    metrics: dict[str, float]
    """``step``, ``train_loss``, ``valid_loss`` ..."""


class TrainOutcome(_Message):
    """How a run ended."""

    status: Literal["finished", "stopped"]
    """``stopped``: it was told to; it goes on from its newest checkpoint."""
    num_trained_tokens: int
    """Of the whole run."""
    best_step: int | None = None
    """Step of the checkpoint with the best validation loss, or the last."""
    output_dir: Path | None = None
    """Adapter (safetensors and config), or whole weights."""
    metrics: dict[str, Any] = {}
    """Of the best checkpoint."""


def golden_file(spec: TrainSpec, content_id: str) -> Path:
    """Return where the golden answers of an adapter, or weights, of this run are."""
    return spec.run_dir / "golden" / f"{content_id}.json"


def outcome_file(spec: TrainSpec) -> Path:
    """Return where a run that is finished says so: whoever publishes it need not run it again."""
    return spec.run_dir / "outcome.json"


def read_outcome(spec: TrainSpec) -> TrainOutcome | None:
    """Return how a run ended; none where it is not finished."""
    try:
        return TrainOutcome.model_validate_json(outcome_file(spec).read_bytes())
    except FileNotFoundError:
        return None


class Reporter(Protocol):
    """Who is told."""

    def on_step(self, step: StepReport) -> bool:
        """Hear of a step; false means: keep a checkpoint and stop."""
        ...

    def flush(self) -> None:
        """Keep all that was heard: what comes next will not be told again."""
        ...

    def on_validation(self, metrics: dict[str, float]) -> None:
        """Hear of a validation: ``step``, ``valid_loss``, ``valid_mean_token_accuracy``."""
        ...

    def on_checkpoint(self, checkpoint: CheckpointReport) -> None:
        """Hear of a checkpoint."""
        ...
