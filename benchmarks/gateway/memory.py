"""The gateway's memory over many requests: ``python -m benchmarks.gateway.memory``.

The gateway as ``maas up`` runs it, with a key and every limit on, in front of the mock engine.
Whole answers and streams at the same time; its memory is read every tenth of the way, when what
it writes late (journal, counters) is written.
"""

import argparse
import asyncio
import contextlib
import json
import os
import platform as host
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
import uvloop

from benchmarks.gateway.load import Load, Tally, request_bytes, run_load
from benchmarks.gateway.mock_engine import MODEL
from benchmarks.gateway.servers import Server, mock_engine, our_gateway

NUM_STEPS = 10
MAX_GROWTH = 0.05
# What is written late is written twice a second.
_REST_S = 2.0
_STEP_TIMEOUT_S = 300.0
_MIB = 2**20


@dataclass(frozen=True)
class Reading:
    """The memory of the gateway's processes after so many requests.

    Attributes:
        pss_bytes: Proportional set size: pages that processes share are counted once.
        rss_bytes: Resident set size.
    """

    num_requests: int
    pss_bytes: int
    rss_bytes: int


def read_memory(server: Server, num_requests: int) -> Reading:
    """Return what the server and its children hold now."""
    pss = rss = 0
    for process in [server.process, *server.process.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            info = process.memory_full_info()
            pss += info.pss
            rss += info.rss
    return Reading(num_requests, pss, rss)


async def run_step(server: Server, *, num_whole: int, num_streamed: int) -> None:
    """Send so many requests, whole and streamed ones at the same time.

    Raises:
        RuntimeError: One was not answered.
    """

    async def run(count: int, *, is_stream: bool) -> Tally:
        request = request_bytes(server.port, model=MODEL, key=server.key, is_stream=is_stream)
        load = Load(is_stream, 64 if is_stream else 16, _STEP_TIMEOUT_S, count)
        return await run_load(server.port, request, load)

    for tally, wanted in zip(
        await asyncio.gather(run(num_whole, is_stream=False), run(num_streamed, is_stream=True)),
        (num_whole, num_streamed),
        strict=True,
    ):
        if tally.num_requests != wanted:
            failed = f"{tally.num_requests} of {wanted} requests answered: {tally.error}"
            raise RuntimeError(failed)


def run(server: Server, *, num_requests: int, streamed_share: float) -> list[Reading]:
    """Send all requests; return the memory before them and after each tenth."""
    readings = [read_memory(server, 0)]
    step = num_requests // NUM_STEPS
    num_streamed = round(step * streamed_share)
    for index in range(NUM_STEPS):
        uvloop.run(run_step(server, num_whole=step - num_streamed, num_streamed=num_streamed))
        time.sleep(_REST_S)
        readings.append(read_memory(server, (index + 1) * step))
    return readings


def growth(readings: Sequence[Reading]) -> float:
    """Return by what share memory grew from the first tenth of the requests to the end."""
    return readings[-1].pss_bytes / readings[1].pss_bytes - 1


def table(readings: Sequence[Reading]) -> str:
    """Return the readings and the goal as Markdown."""
    lines = ["| requests | PSS | RSS |", "|---|---|---|"]
    lines += [
        f"| {r.num_requests:,} | {r.pss_bytes / _MIB:.1f} MiB | {r.rss_bytes / _MIB:.1f} MiB |"
        for r in readings
    ]
    grown = growth(readings)
    lines += ["", "| goal | measured | limit | |", "|---|---|---|---|"]
    lines.append(
        f"| growth (PSS) from {readings[1].num_requests:,} to {readings[-1].num_requests:,} "
        f"requests | {grown:+.1%} | <= {MAX_GROWTH:.0%} "
        f"| {'met' if grown <= MAX_GROWTH else 'MISSED'} |"
    )
    return "\n".join(lines)


def main() -> int:
    """Run the benchmark; 1 where memory grows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--streamed", type=float, default=0.2, help="share of streamed requests")
    parser.add_argument("--json", type=Path, help="write the figures here")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="maas-bench-") as name:
        folder = Path(name)
        with mock_engine(folder) as engine, our_gateway(folder, engine.port) as gateway:
            readings = run(
                gateway, num_requests=arguments.requests, streamed_share=arguments.streamed
            )
    print(f"{time.strftime('%Y-%m-%d')}, {host.machine()}, {os.cpu_count()} cores, ", end="")
    print(f"{arguments.streamed:.0%} of the requests streamed\n")
    print(table(readings))
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(r) for r in readings]), encoding="utf-8")
    return 0 if growth(readings) <= MAX_GROWTH else 1


if __name__ == "__main__":
    raise SystemExit(main())
