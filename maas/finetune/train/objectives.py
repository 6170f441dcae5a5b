"""What is minimised: one module-level function a method, each over the examples of one step.

An objective runs the passes of a step, calls ``backward`` on each, and says what it saw. The
loss of a step is a mean over all its target tokens (or pairs), however many passes it took.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from maas.finetune.data.rendering import PreferencePair, TokenisedExample
from maas.finetune.train.model import TrainedModel
from maas.finetune.train.packing import PackedRow, pack, split

Example = TokenisedExample | PreferencePair
# What an idle pass runs: one token, nothing to learn.
NOTHING = TokenisedExample(input_ids=[0], is_target=[False])


@dataclass
class Seen:
    """Sums over what a step, or a validation, saw.

    Attributes:
        loss: Sum over items.
        num_items: Target tokens, or pairs.
        num_right: Items that were predicted (the likeliest token; the chosen answer).
    """

    loss: float = 0.0
    num_items: int = 0
    num_right: int = 0

    def add(self, other: "Seen") -> None:
        """Add what another part saw."""
        self.loss += other.loss
        self.num_items += other.num_items
        self.num_right += other.num_right

    @property
    def mean_loss(self) -> float:
        """Loss of one item."""
        return self.loss / max(self.num_items, 1)

    @property
    def accuracy(self) -> float:
        """Share of items that were predicted."""
        return self.num_right / max(self.num_items, 1)


@dataclass(frozen=True)
class Objective:
    """How a method learns and is measured.

    Attributes:
        num_items: Items of a step: what its loss is a mean over.
        run: Runs a step's examples; with a scale, each pass's loss times it goes backward.
    """

    num_items: Callable[[Sequence[Example]], int]
    run: Callable[[TrainedModel, Sequence[Example], int, float | None], Seen]


def objective_of(method: str, *, beta: float) -> Objective:
    """Return the objective of a method.

    Args:
        method: ``supervised``, ``pretrain`` (the same over all tokens) or ``dpo``.
        beta: DPO's (Rafailov et al. 2023, equation 7).
    """
    if method == "dpo":
        return Objective(len, partial(_run_pairs, beta=beta))
    return Objective(_count_targets, _run_targets)


def _count_targets(examples: Sequence[Example]) -> int:
    return sum(e.num_targets for e in examples if isinstance(e, TokenisedExample))


def _rows(
    model: TrainedModel, examples: Sequence[TokenisedExample], max_tokens: int
) -> list[PackedRow]:
    groups = split([len(example.input_ids) for example in examples], max_tokens)
    rows = [pack([examples[i] for i in group]) for group in groups]
    rows += [pack([NOTHING])] * model.num_idle(len(rows))
    return [row.to(model.device) for row in rows]


def _run_targets(
    model: TrainedModel, examples: Sequence[Example], max_tokens: int, scale: float | None
) -> Seen:
    """Cross entropy of the target tokens."""
    seen = Seen()
    plain = [example for example in examples if isinstance(example, TokenisedExample)]
    for row in _rows(model, plain, max_tokens):
        with torch.set_grad_enabled(scale is not None):
            predictions = model.predict(row)
            loss = -predictions.logprobs.sum()
        if scale is not None:
            (loss * scale).backward()
        seen.add(
            Seen(
                loss=float(loss.detach()),
                num_items=len(row.targets),
                num_right=int(predictions.is_likeliest.sum()),
            )
        )
    return seen


def _run_pairs(
    model: TrainedModel,
    examples: Sequence[Example],
    max_tokens: int,
    scale: float | None,
    *,
    beta: float,
) -> Seen:
    """DPO: how much more the tuned model prefers the chosen answer than it did before training."""
    seen = Seen()
    pairs = [example for example in examples if isinstance(example, PreferencePair)]
    sizes = [len(pair.chosen.input_ids) + len(pair.rejected.input_ids) for pair in pairs]
    groups = split(sizes, max_tokens)
    groups += [[]] * model.num_idle(len(groups))
    for group in groups:
        flat = [e for i in group for e in (pairs[i].chosen, pairs[i].rejected)]
        # An idle pass has a pair of nothing, and nobody counts it.
        flat = flat or [NOTHING, NOTHING]
        row = pack(flat).to(model.device)
        counts = [example.num_targets for example in flat]
        with torch.no_grad(), model.as_reference():
            base = _sums(model.predict(row).logprobs, counts)
        with torch.set_grad_enabled(scale is not None):
            tuned = _sums(model.predict(row).logprobs, counts)
            margin = beta * ((tuned - base)[0::2] - (tuned - base)[1::2])
            loss = -torch.nn.functional.logsigmoid(margin).sum() if group else margin.sum()
        if scale is not None:
            (loss * scale).backward()
        seen.add(
            Seen(
                loss=float(loss.detach()),
                num_items=len(group),
                num_right=int((margin.detach() > 0).sum()),
            )
        )
    return seen


def _sums(logprobs: torch.Tensor, counts: list[int]) -> torch.Tensor:
    """Return the log-probability of each answer: the sum over its tokens."""
    return torch.stack([part.sum() for part in logprobs.split(counts)])
