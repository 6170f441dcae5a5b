"""Rows of the serving benchmark: medians, ratios, the table and the JSON beside it."""

import json
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu.decode_limit import MachineLimits, decode_limit_tokens_s, step_bytes
from benchmarks.gpu.load import WaveResult
from benchmarks.gpu.shapes import ModelShape

# A client that takes this much of a processor may be what is measured.
CLIENT_BOUND = 0.85


@dataclass(frozen=True)
class Row:
    """One batch size on one server; every figure is the median over the rounds.

    Attributes:
        decode_tokens_s: While every stream decoded; None: never all at once.
        limit_tokens_s: The decode roofline at the context of that window.
        spread: Highest over lowest decode speed of the rounds.
    """

    shape: str
    server: str
    num_streams: int
    num_rounds: int
    decode_tokens_s: float | None
    limit_tokens_s: float
    output_tokens_s: float
    first_token_s: float
    mean_context: float
    spread: float | None
    client_cpu: float

    @property
    def share(self) -> float | None:
        """Decode speed over the roofline."""
        return None if self.decode_tokens_s is None else self.decode_tokens_s / self.limit_tokens_s


def make_row(
    shape: ModelShape,
    limits: MachineLimits,
    results: Sequence[WaveResult],
    *,
    server: str,
    num_streams: int,
) -> Row:
    """Return the row of one batch size from its rounds."""
    speeds = [r.decode_tokens_s for r in results if r.decode_tokens_s is not None]
    mean_context = statistics.median(r.mean_context for r in results)
    return Row(
        shape=shape.name,
        server=server,
        num_streams=num_streams,
        num_rounds=len(results),
        decode_tokens_s=statistics.median(speeds) if speeds else None,
        limit_tokens_s=decode_limit_tokens_s(
            shape, limits, num_streams=num_streams, mean_context=mean_context
        ),
        output_tokens_s=statistics.median(r.output_tokens_s for r in results),
        first_token_s=statistics.median(r.first_token_s for r in results),
        mean_context=mean_context,
        spread=max(speeds) / min(speeds) if speeds else None,
        client_cpu=statistics.median(r.client_cpu for r in results),
    )


def paired_ratio(ours: Sequence[WaveResult], theirs: Sequence[WaveResult]) -> float:
    """Return the median of ours over theirs, round by round, of all tokens over the whole wave."""
    pairs = zip(ours, theirs, strict=True)
    return statistics.median(a.output_tokens_s / b.output_tokens_s for a, b in pairs)


def limits_text(limits: MachineLimits, shape: ModelShape) -> str:
    """Return what the limits are made of, in words."""
    weights = step_bytes(shape, num_streams=1, mean_context=0)
    return (
        f"{limits.device}, torch {limits.torch}: {limits.bandwidth_bytes_s / 1e9:,.0f} GB/s, "
        f"{limits.matmul_flops_s / 1e12:,.2f} TFLOP/s bf16, both measured in this run. "
        f"{shape.name}: {shape.parameters / 1e9:.2f} B parameters, {weights / 1e9:.2f} GB read "
        f"a step, {shape.kv_bytes_per_token / 1024:.0f} KiB of KV cache a token."
    )


def table(rows: Sequence[Row], ratios: Mapping[int, float]) -> str:
    """Return the Markdown table of one shape; ratios by batch size."""
    lines = [
        "| streams | server | decode tok/s | roofline | share | all tok/s | of bare vLLM "
        "| first token ms | spread | client CPU |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        decode = "-" if row.decode_tokens_s is None else f"{row.decode_tokens_s:,.0f}"
        share = "-" if row.share is None else f"{row.share:.0%}"
        is_ours = row.server != "vllm" and row.num_streams in ratios
        ratio = f"{ratios[row.num_streams]:.1%}" if is_ours else "-"
        spread = "-" if row.spread is None else f"{row.spread:.2f}x"
        bound = " (limits)" if row.client_cpu > CLIENT_BOUND else ""
        lines.append(
            f"| {row.num_streams} | {row.server} | {decode} | {row.limit_tokens_s:,.0f} | {share} "
            f"| {row.output_tokens_s:,.0f} | {ratio} | {row.first_token_s * 1e3:,.0f} "
            f"| {spread} | {row.client_cpu:.0%}{bound} |"
        )
    return "\n".join(lines)


def save(path: Path, record: Mapping[str, Any]) -> None:
    """Write a record as JSON, whole or not at all: a run can be cut off at any moment."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def row_record(row: Row) -> dict[str, Any]:
    """Return a row as it goes into the JSON file."""
    return asdict(row) | {"share": row.share}
