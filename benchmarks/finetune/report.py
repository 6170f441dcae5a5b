"""The table of the speed comparison."""

from collections.abc import Sequence
from dataclasses import dataclass

MAX_LOSS_GAP = 0.01
GOAL = 2.5


@dataclass(frozen=True)
class Side:
    """One side's figures.

    Attributes:
        tokens_per_s: Median over the rounds, real tokens a second of wall time.
        tokens_per_cpu_s: The same a second of processor time.
        final_loss: Over all chats after training.
    """

    name: str
    tokens_per_s: float
    tokens_per_cpu_s: float
    final_loss: float


def table(sides: Sequence[Side], ours: str) -> str:
    """Return the Markdown table, each side compared with ours."""
    own = next(side for side in sides if side.name == ours)
    lines = [
        "| side | tok/s | tok per CPU s | ours is | final loss | ours differs |",
        "|---|---|---|---|---|---|",
    ]
    for side in sides:
        ratio, gap = own.tokens_per_s / side.tokens_per_s, own.final_loss / side.final_loss - 1
        is_same = side.name == own.name
        goal = "" if is_same or "stock" not in side.name else f" (goal {GOAL}x)"
        verdict = "" if is_same else f"{gap:+.2%}" + ("" if abs(gap) <= MAX_LOSS_GAP else " MISSED")
        lines.append(
            f"| {side.name} | {side.tokens_per_s:.0f} | {side.tokens_per_cpu_s:.0f} "
            f"| {'' if is_same else f'{ratio:.2f}x'}{goal} | {side.final_loss:.4f} | {verdict} |"
        )
    return "\n".join(lines)
