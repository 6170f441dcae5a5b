"""Rows, ratios and the table of the gateway benchmark."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

# With what a tenant usually has: a key, requests and tokens a minute, a budget.
OURS = "maas gateway"
EVERYTHING = "maas gateway, 15 limits"
BARE = "bare relay"
ROUTER = "vllm-router 0.1.17"
LITELLM = "LiteLLM proxy 1.106.0"
# Below this many reads a chunk, chunks were put together on the way: no longer a cost by chunk.
MIN_READS_PER_CHUNK = 0.9


@dataclass(frozen=True)
class Figures:
    """One server in one round.

    Attributes:
        requests_per_core: Requests answered a second of the server's processor time.
        us_per_chunk: Processor microseconds a streamed chunk, its share of the request included.
        reads_per_chunk: Reads of the client a chunk; about 1 where chunks arrive one by one.
        requests_per_s: By the clock; bounded by the whole machine, not by the server.
    """

    requests_per_core: float
    us_per_chunk: float
    reads_per_chunk: float
    requests_per_s: float


@dataclass(frozen=True)
class Goal:
    """What was promised; the median over rounds of what was measured within each round."""

    text: str
    measured: float
    limit: float
    is_at_least: bool
    unit: str = "x"

    @property
    def is_met(self) -> bool:
        """Whether the promise holds."""
        if self.is_at_least:
            return self.measured >= self.limit
        return self.measured <= self.limit


Rounds = Mapping[str, Sequence[Figures]]


def medians(rounds: Sequence[Figures]) -> Figures:
    """Return the median of each figure."""
    return Figures(
        requests_per_core=median(r.requests_per_core for r in rounds),
        us_per_chunk=median(r.us_per_chunk for r in rounds),
        reads_per_chunk=median(r.reads_per_chunk for r in rounds),
        requests_per_s=median(r.requests_per_s for r in rounds),
    )


def goals(rounds: Rounds) -> list[Goal]:
    """Return the goals whose peer was measured."""
    ours, found = rounds[OURS], list[Goal]()
    if BARE in rounds and EVERYTHING in rounds:
        pairs = list(zip(rounds[EVERYTHING], rounds[BARE], strict=True))
        added = median(1e6 / o.requests_per_core - 1e6 / b.requests_per_core for o, b in pairs)
        text = "keys, limits, ledger, metering: CPU a request"
        found.append(Goal(text, added, 150.0, is_at_least=False, unit=" us"))
        added = median(o.us_per_chunk - b.us_per_chunk for o, b in pairs)
        text = "keys, limits, ledger, metering: CPU a chunk"
        found.append(Goal(text, added, 4.0, is_at_least=False, unit=" us"))
    if ROUTER in rounds:
        pairs = list(zip(ours, rounds[ROUTER], strict=True))
        ratio = median(o.requests_per_core / p.requests_per_core for o, p in pairs)
        found.append(Goal("requests per core over vllm-router's", ratio, 0.5, is_at_least=True))
        ratio = median(o.us_per_chunk / p.us_per_chunk for o, p in pairs)
        found.append(Goal("CPU per chunk over vllm-router's", ratio, 1.0, is_at_least=False))
    if LITELLM in rounds:
        pairs = list(zip(ours, rounds[LITELLM], strict=True))
        ratio = median(o.requests_per_core / p.requests_per_core for o, p in pairs)
        found.append(Goal("requests per core over LiteLLM's", ratio, 25.0, is_at_least=True))
    return found


def table(rounds: Rounds) -> str:
    """Return the figures and the goals as Markdown."""
    lines = [
        "| server | requests/s per core | CPU per streamed chunk | client reads per chunk "
        "| requests/s |",
        "|---|---|---|---|---|",
    ]
    for name, figures in rounds.items():
        row = medians(figures)
        is_merged = row.reads_per_chunk < MIN_READS_PER_CHUNK
        lines.append(
            f"| {name} | {row.requests_per_core:,.0f} | {row.us_per_chunk:,.1f} us "
            f"| {row.reads_per_chunk:.2f}{' (merged)' if is_merged else ''} "
            f"| {row.requests_per_s:,.0f} |"
        )
    lines += ["", "| goal | measured | limit | |", "|---|---|---|---|"]
    for goal in goals(rounds):
        sign = ">=" if goal.is_at_least else "<="
        lines.append(
            f"| {goal.text} | {goal.measured:.2f}{goal.unit} | {sign} {goal.limit:g}{goal.unit} "
            f"| {'met' if goal.is_met else 'MISSED'} |"
        )
    return "\n".join(lines)
