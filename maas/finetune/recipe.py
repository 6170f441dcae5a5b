"""Recipes: how a kind of tuning is done, and what "auto" means. Light: no ML library.

The rule of "auto", as few numbers as possible:

- **n_epochs**: 3, but at least 400 and at most 25,000 examples are seen in all (25 epochs and
  1 at the ends). OpenAI's own rule (cookbook, "Data preparation and analysis for chat model
  fine-tuning") with 400 for its 100: an adapter on a small model learns a dozen facts in about
  50 steps of 4, and not in 25 (docs/finetuning-training.md).
- **batch_size**: one in 500 examples, a power of two from 4 to 64: small data needs steps more
  than it needs smooth gradients.
- **learning_rate_multiplier**: 1, of the recipe's ``learning_rate``.
- **beta** (DPO): the recipe's.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from maas.core.errors import ConfigError, InvalidRequest

Method = Literal["supervised", "dpo", "pretrain"]
Tuning = Literal["lora", "qlora", "full"]
AUTO = "auto"
MIN_SEEN, MAX_SEEN, TARGET_EPOCHS, MAX_AUTO_EPOCHS = 400, 25_000, 3, 25
MIN_BATCH, MAX_BATCH, EXAMPLES_PER_BATCH = 4, 64, 500


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Recipe(_Part):
    """One way to tune, read from ``finetune/<name>.yaml``."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,31}$")
    """What jobs ask for."""
    description: str
    """What it is good for."""
    method: Method
    """What the data teaches: answers, preferences, or text."""
    tuning: Tuning
    """What changes: an adapter, an adapter on 4-bit weights, or all weights."""
    r: int = Field(default=8, gt=0, le=512)
    """Rank of the adapter."""
    lora_alpha: int = Field(default=16, gt=0)
    """The adapter's output is scaled by ``lora_alpha / r``."""
    lora_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of the adapter's inputs left out in training."""
    target_modules: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """Layers that get an adapter; all linear ones but the output."""
    learning_rate: float = Field(gt=0)
    """What ``learning_rate_multiplier`` multiplies."""
    lr_scheduler: Literal["linear", "cosine", "constant"] = "linear"
    """How the learning rate falls after the warm-up."""
    warmup_ratio: float = Field(default=0.05, ge=0, lt=1)
    """Share of the steps in which the learning rate rises from 0."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Of AdamW."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Longer gradients are cut to this."""
    beta: float = Field(default=0.1, gt=0)
    """DPO: how closely the tuned model keeps to the base."""
    max_length: int | None = Field(default=None, gt=0)
    """Longest example in tokens; none: the model's context."""
    num_checkpoints: int = Field(default=3, gt=0)
    """Checkpoints that are kept and served, the last ones."""
    early_stopping_patience: int | None = Field(default=None, gt=0)
    """Validations without a better loss after which training ends; none: never."""

    @model_validator(mode="after")
    def _preferences_need_an_adapter(self) -> "Recipe":
        # What DPO compares with is the model without it: whole weights would be held twice.
        if self.method == "dpo" and self.tuning == "full":
            raise ValueError("method dpo needs an adapter: tuning lora or qlora")
        return self


class Hyperparameters(_Part):
    """What a job is run with: every "auto" filled in."""

    n_epochs: int = Field(gt=0)
    """Times each example is seen."""
    batch_size: int = Field(gt=0)
    """Examples of one optimizer step."""
    learning_rate_multiplier: float = Field(gt=0)
    """Of the recipe's learning rate."""
    beta: float | None = Field(default=None, gt=0)
    """DPO only."""


_BOUNDS = {
    "n_epochs": (int, 1, 50),
    "batch_size": (int, 1, 256),
    "learning_rate_multiplier": (float, 1e-4, 1e3),
    "beta": (float, 1e-3, 2.0),
}


def load_recipes(folder: Path) -> dict[str, Recipe]:
    """Read every ``*.yaml`` of a folder.

    Raises:
        ConfigError: A recipe is wrong (the message names file and field), or there is no folder.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder of recipes; set MAAS_FINETUNE__RECIPES_DIR")
    recipes: dict[str, Recipe] = {}
    for path in sorted(folder.glob("*.yaml")):
        try:
            recipe = Recipe.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
        except yaml.YAMLError as error:
            raise ConfigError(f"{path}: not valid YAML: {error}", file=str(path)) from error
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"]) or "(the whole recipe)"
            raise ConfigError(f"{path}: field {field}: {first['msg']}", file=str(path)) from error
        if recipe.name != path.stem:
            raise ConfigError(
                f"{path}: its name is {recipe.name!r}, not the file's", file=str(path)
            )
        recipes[recipe.name] = recipe
    return recipes


def check_hyperparameters(given: Mapping[str, Any]) -> None:
    """Check what a caller asked for: ``auto`` or a number within bounds.

    Raises:
        InvalidRequest: A name is unknown or a value is out of bounds; the message says which.
    """
    for name, value in given.items():
        if name not in _BOUNDS:
            known = ", ".join(_BOUNDS)
            raise InvalidRequest(
                f"hyperparameters.{name} is not known; there are {known}",
                param=f"hyperparameters.{name}",
            )
        kind, low, high = _BOUNDS[name]
        is_number = isinstance(value, (int, kind)) and not isinstance(value, bool)
        if value is None or value == AUTO or (is_number and low <= value <= high):
            continue
        raise InvalidRequest(
            f"hyperparameters.{name} is {value!r}; want 'auto' or a number from {low} to {high}",
            param=f"hyperparameters.{name}",
        )


def resolve(recipe: Recipe, given: Mapping[str, Any], *, num_examples: int) -> Hyperparameters:
    """Fill in every "auto"; the rule is in the module's docstring."""
    check_hyperparameters(given)
    asked = {name: value for name, value in given.items() if value not in {None, AUTO}}
    values = {
        "n_epochs": auto_epochs(num_examples),
        "batch_size": auto_batch(num_examples),
        "learning_rate_multiplier": 1.0,
    }
    if recipe.method == "dpo":
        values["beta"] = recipe.beta
    elif "beta" in asked:
        raise InvalidRequest("beta is of method dpo only", param="hyperparameters.beta")
    return Hyperparameters.model_validate(values | asked)


def auto_epochs(num_examples: int) -> int:
    """Return how often the data is seen."""
    seen = num_examples * TARGET_EPOCHS
    if seen < MIN_SEEN:
        return min(MAX_AUTO_EPOCHS, -(-MIN_SEEN // max(num_examples, 1)))
    if seen > MAX_SEEN:
        return max(1, MAX_SEEN // num_examples)
    return TARGET_EPOCHS


def auto_batch(num_examples: int) -> int:
    """Return how many examples make one step."""
    share = max(num_examples // EXAMPLES_PER_BATCH, 1)
    return min(max(1 << (share.bit_length() - 1), MIN_BATCH), MAX_BATCH)
