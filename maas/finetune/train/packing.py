"""Batches without padding: the examples of a step, end to end, in as few passes as fit.

No example sees another: attention is told where each begins (``maas.finetune.train.attention``)
and positions start at 0 in each. The order of the data is drawn from seed and epoch alone, so a
run that goes on sees exactly what it would have seen.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from maas.finetune.data.rendering import TokenisedExample


@dataclass(frozen=True)
class PackedRow:
    """Several examples as one row of ``T`` tokens.

    Attributes:
        input_ids: int64, shape (1, T).
        position_ids: int64, shape (1, T); 0 at each example's first token.
        lengths: Tokens of each example; they sum to T.
        predicting: int64, shape (N,); positions whose next token is a target.
        targets: int64, shape (N,); those next tokens.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    lengths: tuple[int, ...]
    predicting: torch.Tensor
    targets: torch.Tensor

    @property
    def num_tokens(self) -> int:
        """Tokens of the row."""
        return self.input_ids.shape[1]

    def to(self, device: torch.device) -> "PackedRow":
        """Return the row on a device."""
        moved = (
            tensor.to(device, non_blocking=True) for tensor in (self.input_ids, self.position_ids)
        )
        input_ids, position_ids = moved
        return PackedRow(
            input_ids,
            position_ids,
            self.lengths,
            self.predicting.to(device),
            self.targets.to(device),
        )


def pack(examples: Sequence[TokenisedExample]) -> PackedRow:
    """Return examples as one row."""
    ids = [token for example in examples for token in example.input_ids]
    positions = [at for example in examples for at in range(len(example.input_ids))]
    predicting: list[int] = []
    targets: list[int] = []
    start = 0
    for example in examples:
        for at in range(1, len(example.input_ids)):
            if example.is_target[at]:
                predicting.append(start + at - 1)
                targets.append(example.input_ids[at])
        start += len(example.input_ids)
    return PackedRow(
        input_ids=torch.tensor([ids], dtype=torch.int64),
        position_ids=torch.tensor([positions], dtype=torch.int64),
        lengths=tuple(len(example.input_ids) for example in examples),
        predicting=torch.tensor(predicting, dtype=torch.int64),
        targets=torch.tensor(targets, dtype=torch.int64),
    )


def split(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Return indices in groups of at most ``max_tokens``; longer ones alone.

    First fit, longest first: for a given order of the data always the same.
    """
    groups: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        for group, left in enumerate(room):
            if lengths[index] <= left:
                groups[group].append(index)
                room[group] -= lengths[index]
                break
        else:
            groups.append([index])
            room.append(max_tokens - lengths[index])
    return [sorted(group) for group in groups]


def steps_per_epoch(num_examples: int, batch_size: int) -> int:
    """Return the optimizer steps of one pass over the data."""
    return -(-num_examples // batch_size)


def batches(num_examples: int, batch_size: int, *, seed: int, epoch: int) -> Iterator[list[int]]:
    """Yield the indices of each step of an epoch (from 0)."""
    order = list(range(num_examples))
    random.Random(f"{seed}/{epoch}").shuffle(order)  # noqa: S311 - an order, not a secret
    for start in range(0, num_examples, batch_size):
        yield order[start : start + batch_size]
