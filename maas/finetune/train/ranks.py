"""The workers of one run: each takes a share of every step, and all move the same weights.

Gradients are sums over a step's items with the scale of the whole step, so what the ranks add up
is what one worker would have had. Alone, nothing here costs anything.
"""

from collections.abc import Sequence
from dataclasses import astuple, dataclass

import torch
import torch.distributed as dist

from maas.finetune.train.objectives import Seen


@dataclass(frozen=True)
class Ranks:
    """This worker among those of its run.

    Attributes:
        rank: From 0; the first one reports and writes.
        size: How many there are.
        device: Where this one's tensors are: what its backend can send.
    """

    rank: int = 0
    size: int = 1
    device: torch.device | None = None

    @classmethod
    def current(cls, device: torch.device) -> "Ranks":
        """Return this process' place in torch's default group, if there is one."""
        if not dist.is_available() or not dist.is_initialized():
            return cls()
        return cls(dist.get_rank(), dist.get_world_size(), device)

    @property
    def is_first(self) -> bool:
        """Whether this one reports and writes."""
        return self.rank == 0

    def share(self, items: Sequence[int]) -> Sequence[int]:
        """Return this one's part."""
        return items[self.rank :: self.size]

    def norm(self, own: torch.Tensor) -> torch.Tensor:
        """Return the norm of all workers' parts of one vector, from that of this one's."""
        squares = own.square()
        dist.all_reduce(squares)
        return squares.sqrt()

    def add_up(self, tensors: Sequence[torch.Tensor]) -> None:
        """Make each tensor the sum of all workers'; all go in one message."""
        if self.size == 1:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        dist.all_reduce(flat)
        parts = flat.split([tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))

    def total(self, seen: Seen) -> Seen:
        """Return what all workers saw."""
        if self.size == 1:
            return seen
        sums = torch.tensor(astuple(seen), dtype=torch.float64, device=self.device)
        dist.all_reduce(sums)
        loss, *counts = sums.tolist()
        return Seen(loss, *(int(count) for count in counts))

    def first_says(self, claim: bool) -> bool:
        """Return what the first worker claims."""
        if self.size == 1:
            return claim
        said = torch.tensor([int(claim)], device=self.device)
        dist.broadcast(said, src=0)
        return bool(said.item())

    def wait(self) -> None:
        """Return when all are here."""
        if self.size > 1:
            dist.barrier()
