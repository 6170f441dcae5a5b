"""A short tune after pruning: what is left learns to say what the original says.

Source: "Compact Language Models via Pruning and Knowledge Distillation" (Muralidharan et al.,
2024, section 3): the divergence of logits alone, on little text, brings most of it back.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

_BATCH_ROWS = 4
_LEARNING_RATE = 2e-4
_WARMUP_SHARE = 0.1
Tell = Callable[[float], None]


@dataclass(frozen=True)
class Recovered:
    """What a recovery did; divergences in nats a token, the first and the last step's."""

    num_steps: int
    seconds: float
    first_divergence: float
    last_divergence: float

    def plain(self) -> dict[str, Any]:
        """Return it as the receipt has it."""
        return {
            "num_steps": self.num_steps,
            "seconds": round(self.seconds, 1),
            "first_divergence": self.first_divergence,
            "last_divergence": self.last_divergence,
        }


def recover(
    student: nn.Module, teacher: nn.Module, rows: Tensor, *, max_seconds: float, tell: Tell
) -> Recovered:
    """Tune a pruned model towards its original, in place, for a time.

    Args:
        student: Is tuned; float32 while it learns, back in its own type afterwards.
        teacher: The original.
        rows: Text, shape (rows, length); gone through as often as there is time.
        max_seconds: It stops after the step in which this is over.
        tell: Told the share of the time that is gone, 0 to 1.
    """
    dtype = next(student.parameters()).dtype
    student.float().train()
    optimizer = torch.optim.AdamW(student.parameters(), lr=_LEARNING_RATE, weight_decay=0.0)
    order = torch.Generator().manual_seed(0)
    started, losses = time.monotonic(), list[float]()
    while (gone := time.monotonic() - started) < max_seconds:
        share = gone / max_seconds
        for group in optimizer.param_groups:
            # Up in a tenth of the time, then down to nothing.
            group["lr"] = _LEARNING_RATE * min(share / _WARMUP_SHARE, 1.0) * (1.0 - share)
        batch = rows[torch.randperm(len(rows), generator=order)[:_BATCH_ROWS]]
        losses.append(_step(student, teacher, batch, optimizer))
        tell(min(1.0, (time.monotonic() - started) / max_seconds))
    student.to(dtype).eval()
    first, last = (losses[0], losses[-1]) if losses else (0.0, 0.0)
    return Recovered(len(losses), time.monotonic() - started, first, last)


def _step(
    student: nn.Module, teacher: nn.Module, batch: Tensor, optimizer: torch.optim.Optimizer
) -> float:
    with torch.no_grad():
        wanted = torch.log_softmax(teacher(batch, use_cache=False).logits.float(), -1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = student(batch, use_cache=False).logits
    said = torch.log_softmax(logits.float(), -1)
    loss = nn.functional.kl_div(said, wanted, reduction="none", log_target=True).sum(-1).mean()
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(student.parameters(), 1.0)
    optimizer.step()
    return float(loss.detach())
