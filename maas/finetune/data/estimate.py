"""What training would cost and how long it would take, before it starts. Light.

A token that is trained costs about 4 operations a weight where only an adapter learns (2 forward,
2 to pass gradients through frozen weights) and 6 where all weights learn (Kaplan et al. 2020,
section 2.1). Time is those operations over what the machine does in a second; a measured figure,
where there is one, is better.
"""

from decimal import ROUND_HALF_UP, Decimal
from typing import Literal

from pydantic import BaseModel, ConfigDict

from maas.catalog.card import ModelCard
from maas.finetune.data.problems import DataReport
from maas.finetune.recipe import auto_epochs

FLOPS_PER_WEIGHT = {"lora": 4, "full": 6}
# Of a processor's core in training's matrix products (AVX-512, float32); a rough figure.
FLOPS_PER_CORE = 40e9
_CENT_OF_CENT = Decimal("0.0001")


class Estimate(BaseModel):
    """What a job would take.

    Attributes:
        num_trained_tokens: Of all epochs: what is charged.
        seconds: Of training alone; waiting and publishing come on top.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_epochs: int
    num_trained_tokens: int
    price_per_million: Decimal
    currency: str
    cost: Decimal
    tokens_per_s: float
    seconds: float


def estimate_job(
    report: DataReport, card: ModelCard, *, epochs: int | None, tokens_per_s: float
) -> Estimate:
    """Return what a job on checked data would take.

    Args:
        report: Of the data check, with tokens counted.
        card: The base model, with its price.
        epochs: Times each example is seen; none: as "auto" has it.
        tokens_per_s: How fast this model trains on the machine.
    """
    num_epochs = epochs or auto_epochs(report.num_examples)
    tokens = report.num_tokens * num_epochs
    price = card.price.training_per_million
    cost = (price * tokens / 1_000_000).quantize(_CENT_OF_CENT, rounding=ROUND_HALF_UP)
    return Estimate(
        num_epochs=num_epochs,
        num_trained_tokens=tokens,
        price_per_million=price,
        currency=card.price.currency,
        cost=cost,
        tokens_per_s=tokens_per_s,
        seconds=tokens / tokens_per_s,
    )


def tokens_per_second(
    parameters: int, *, num_cores: int, tuning: Literal["lora", "full"] = "lora"
) -> float:
    """Return how fast a model of this size trains on processors, roughly.

    Args:
        parameters: The model's weights.
        num_cores: Cores that training gets.
        tuning: What learns.
    """
    return num_cores * FLOPS_PER_CORE / (FLOPS_PER_WEIGHT[tuning] * parameters)


def duration(seconds: float) -> str:
    """Return a time as people say it: it is rough."""
    return f"{seconds / 60:.0f} min" if seconds >= 60 else f"{seconds:.0f} s"
