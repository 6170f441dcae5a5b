"""``maas job watch``: a job as it trains, as a curve in a terminal and as lines elsewhere."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from maas.cli.client import GatewayClient
from maas.core.errors import Unavailable

OVER = frozenset({"succeeded", "failed", "cancelled"})
# A gateway that starts again is waited for.
PATIENCE_S = 60.0
CURVE_HEIGHT = 10
_NUM_MESSAGES = 6
# Dots of a braille character: (row, column) -> its bit.
_DOTS = (0x01, 0x08, 0x02, 0x10, 0x04, 0x20, 0x40, 0x80)


@dataclass
class Watched:
    """What is known of a job.

    Attributes:
        events: Oldest first.
        losses: Of training, by step.
    """

    job: dict[str, Any]
    events: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    losses: dict[int, float] = field(default_factory=dict[int, float])
    _known: frozenset[str] = frozenset()

    def look(self, client: GatewayClient) -> list[dict[str, Any]]:
        """Ask for what is new; return the events, oldest first."""
        path = f"/fine_tuning/jobs/{self.job['id']}"
        # The job first: whatever it told before it was over is read after it.
        self.job = client.get(path)
        new = client.since(f"{path}/events", self._known)[::-1]
        self._known |= {event["id"] for event in new}
        self.events += new
        for event in new:
            data = event["data"] or {}
            if "train_loss" in data:
                self.losses[int(data["step"])] = float(data["train_loss"])
        return new

    @property
    def is_over(self) -> bool:
        """Whether nothing will be new any more."""
        return self.job["status"] in OVER


def watch(client: GatewayClient, job_id: str, console: Console, *, interval_s: float) -> Watched:
    """Follow a job to its end.

    Raises:
        MaasError: The gateway refuses, or has not answered for a minute.
    """
    watched = Watched({"id": job_id})
    watched.look(client)
    if not console.is_terminal:
        for event in watched.events:
            console.print(_line(event), soft_wrap=True)
        while not watched.is_over:
            time.sleep(interval_s)
            for event in _look(client, watched):
                console.print(_line(event), soft_wrap=True)
        return watched
    with Live(_drawn(watched, console), console=console, auto_refresh=False) as live:
        while not watched.is_over:
            time.sleep(interval_s)
            _look(client, watched)
            live.update(_drawn(watched, console), refresh=True)
    return watched


def _look(client: GatewayClient, watched: Watched) -> list[dict[str, Any]]:
    give_up_at = time.monotonic() + PATIENCE_S
    while True:
        try:
            return watched.look(client)
        except Unavailable:
            if time.monotonic() > give_up_at:
                raise
            time.sleep(1.0)


def curve(values: Sequence[float], *, width: int, height: int) -> list[str]:
    """Draw values from left to right in lines of braille, the highest at the top.

    Args:
        values: At least one; more than fit are averaged.
        width: In characters, of two dots each.
        height: In characters, of four dots each.
    """
    num_columns = min(width * 2, len(values))
    edges = [len(values) * column // num_columns for column in range(num_columns + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, span = min(means), (max(means) - min(means)) or 1.0
    rows = height * 4 - 1
    heights = [rows - round((mean - low) / span * rows) for mean in means]
    cells = [[0] * width for _ in range(height)]
    before = heights[0]
    for column, row in enumerate(heights):
        # A steep part is a line, not two dots far apart.
        for dot in range(min(row, before), max(row, before) + 1):
            cells[dot // 4][column // 2] |= _DOTS[dot % 4 * 2 + column % 2]
        before = row
    return ["".join(chr(0x2800 + cell) for cell in line).rstrip("\u2800") for line in cells]


def headline(job: Mapping[str, Any]) -> str:
    """Return how a job fares, in one line."""
    progress = job["maas"].get("progress") or {}
    parts = [str(job["status"]) + (", pausing" if job["maas"].get("pausing") else "")]
    if progress.get("num_steps"):
        parts.append(f"step {progress['step']}/{progress['num_steps']}")
    if progress.get("loss") is not None:
        parts.append(f"loss {progress['loss']:.4f}")
    if job["status"] == "running" and progress.get("tokens_per_s"):
        parts.append(f"{progress['tokens_per_s']:,.0f} tokens/s")
    if job["status"] == "running" and progress.get("eta_s") is not None:
        parts.append(f"{_duration(float(progress['eta_s']))} left")
    if job.get("trained_tokens"):
        parts.append(f"{job['trained_tokens']:,} tokens trained")
    return " · ".join(parts)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def _drawn(watched: Watched, console: Console) -> Group:
    parts = [Text(f"{watched.job['id']}  {watched.job['model']}", style="bold")]
    parts.append(Text(headline(watched.job)))
    losses = [watched.losses[step] for step in sorted(watched.losses)]
    if losses:
        width = max(min(console.width - 12, 100), 10)
        lines = curve(losses, width=width, height=CURVE_HEIGHT)
        labels = {0: f"{max(losses):9.4f} ", CURVE_HEIGHT - 1: f"{min(losses):9.4f} "}
        for number, line in enumerate(lines):
            parts.append(Text(f"{labels.get(number, ' ' * 10)}┤{line}"))
    told = [event for event in watched.events if event["type"] == "message"]
    parts += [Text(_line(event), style="dim") for event in told[-_NUM_MESSAGES:]]
    return Group(*parts)


def _line(event: Mapping[str, Any]) -> str:
    at = time.strftime("%H:%M:%S", time.localtime(event["created_at"]))
    return f"{at}  {printable(event['message'])}"


def printable(text: str) -> str:
    """Return text that does not steer the terminal, whatever the data made a job say."""
    return "".join(c if c.isprintable() else " " for c in text)
