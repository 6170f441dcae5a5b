"""What a golden file and a receipt hold. Light: no ML library."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from maas.core.errors import NotFound, ReceiptFailed

TOP = 20
"""Likeliest tokens kept of each position: the most that vLLM tells of one."""

Row = dict[int, float]
"""Log-probability of the likeliest tokens of one position and of the one that follows."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Identity(_Part):
    """What a folder of weights is, as SHA-256 each; none where it has no such thing."""

    template: str | None = None
    """Of the chat template's text."""
    tokenizer: str | None = None
    """Of the tokenizer's files."""
    weights: str | None = None
    """Of the weights."""


class GoldenAnswer(_Part):
    """One golden prompt and what was said."""

    messages: list[dict[str, Any]]
    """The chat."""
    prompt_ids: list[int]
    """As serving renders it."""
    completion_ids: list[int]
    """The trainer's greedy answer, with its end where it came to one."""
    completion_text: str
    """The same as text, without special tokens."""
    trainer: list[Row]
    """What the trainer's model says, a row for each token of the answer."""
    base: list[Row] = []
    """The same of the base without the adapter; empty for whole weights."""
    again: list[Row]
    """The same of the other form: weights with the adapter merged in, or whole weights as
    they were saved."""


class Golden(_Part):
    """The trainer's side of a receipt."""

    kind: Literal["adapter", "full"]
    """What was tuned."""
    dtype: str
    """In which all was computed: the one that serving uses."""
    identity: Identity
    """Of the base, or of the whole weights."""
    adapter_sha256: str | None
    """Of the adapter's files; none for whole weights."""
    versions: dict[str, str]
    """Of the libraries that computed it."""
    answers: list[GoldenAnswer]
    """One for each golden prompt."""

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a golden file.

        Raises:
            ReceiptFailed: It is not there or not whole.
        """
        try:
            return cls.model_validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            raise ReceiptFailed(f"the golden file {path.name} cannot be read: {error}") from error


class Leg(_Part):
    """One comparison with the trainer's model."""

    status: Literal["measured", "not_measured"]
    """``not_measured`` has a reason."""
    why: str | None = None
    """Why something was not measured."""
    num_positions: int = 0
    """Tokens that were compared."""
    greedy_token_agreement: float | None = None
    """Share of positions with the same likeliest token, both reading the same text."""
    free_run_agreement: float | None = None
    """Share of prompts that are answered, greedily and alone, with the very same tokens."""
    max_logit_difference: float | None = None
    """Largest difference of a log-probability: of logits, up to softmax's constant."""
    mean_logit_difference: float | None = None
    """Mean of the same."""
    effect_applied: float | None = None
    """How much of what the adapter changes is there: 0 none of it, 1 all, 2 twice as much."""


class Thresholds(_Part):
    """What a leg must reach; docs/finetuning-receipt.md has what they rest on."""

    min_greedy_token_agreement: float
    """Share of positions."""
    max_logit_difference: float
    """At any position."""
    max_mean_logit_difference: float
    """Over all positions."""
    max_effect_error: float
    """How far ``effect_applied`` may be from 1."""
    min_effect: float
    """Mean of what the adapter changes from which that is judged: less is lost in rounding."""
    min_free_run_agreement: float
    """Judged where an engine tells no log-probabilities."""


class Hashes(_Part):
    """What was compared, by its content."""

    trainer: Identity
    """The folder that training read."""
    engine: Identity | None
    """The folder that the engine reads; none where it is not here."""
    adapter: str | None
    """The adapter's files."""


class Receipt(_Part):
    """The verdict and what it rests on."""

    verdict: Literal["passed", "failed"]
    """Only what has passed is published."""
    reasons: tuple[str, ...]
    """Why it failed; empty when it passed."""
    dtype: str
    """In which the trainer's side was computed."""
    engine_dtype: str | None
    """In which the engine computes; none where nobody said."""
    prompts: int
    """Golden prompts."""
    positions: int
    """Tokens with known log-probabilities."""
    effect: Leg | None
    """What the adapter changes: the base without it, compared in the same way."""
    legs: dict[str, Leg]
    """``engine``; ``merged`` for an adapter, ``saved`` for whole weights."""
    hashes: Hashes
    """Of templates, tokenizers and weights."""
    same_rendering: bool | None
    """Whether the engine renders the golden chats to the same tokens; none: it does not tell."""
    thresholds: dict[str, Thresholds]
    """Of each leg, by the coarser dtype of its sides."""
    versions: dict[str, str]
    """Of the libraries on the trainer's side."""
    created_at: float
    """Seconds since 1970."""


def read_receipt(stored: Mapping[str, Any] | None, model_id: str) -> Receipt:
    """Return the receipt that a tuned model's row holds.

    Raises:
        NotFound: It has none, or one of a shape that this version does not know.
    """
    if stored is None:
        raise NotFound(f"{model_id} has no parity receipt: it was not tuned here")
    try:
        return Receipt.model_validate(stored)
    except ValidationError as error:
        raise NotFound(f"the receipt of {model_id} is of another version of maas") from error
