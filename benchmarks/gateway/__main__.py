"""The gateway next to its peers in front of one mock engine: ``python -m benchmarks.gateway``.

Every server runs at once and idle; rounds alternate between them and start with another one each
time. What is measured is the processor time of a server's process and its children, so that
load generator and engine, which share the machine, do not count. Peers are installed into
environments of their own in the user's cache folder.
"""

import argparse
import json
import os
import platform as host
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import uvloop

from benchmarks.gateway.load import Load, Tally, request_bytes, run_load
from benchmarks.gateway.mock_engine import MODEL
from benchmarks.gateway.report import EVERYTHING, OURS, Figures, Rounds, goals, table
from benchmarks.gateway.servers import (
    LITELLM,
    ROUTER,
    Server,
    bare_relay,
    litellm_proxy,
    mock_engine,
    our_gateway,
    peer_venv,
    set_quota,
    vllm_router,
)

# What a server does later (ours writes its journal twice a second) belongs to the load before it.
_LATE_S = 1.2


def _measure(server: Server, load: Load) -> tuple[Tally, float]:
    """Run one load; return what came back and the processor seconds it took the server."""
    request = request_bytes(server.port, model=MODEL, key=server.key, is_stream=load.is_stream)
    before = server.cpu_s()
    tally = uvloop.run(run_load(server.port, request, load))
    time.sleep(_LATE_S)
    cpu_s = server.cpu_s() - before
    if tally.num_errors or not tally.num_requests:
        raise RuntimeError(f"{server.name}: {tally.num_errors} failed requests: {tally.error}")
    return tally, max(cpu_s, 1e-3)


def run_round(server: Server, *, seconds: float, num_connections: int, num_streams: int) -> Figures:
    """Measure one server: whole answers, then streams."""
    whole, whole_cpu_s = _measure(server, Load(False, num_connections, seconds))
    streamed, streamed_cpu_s = _measure(server, Load(True, num_streams, seconds))
    return Figures(
        requests_per_core=whole.num_requests / whole_cpu_s,
        us_per_chunk=1e6 * streamed_cpu_s / streamed.num_chunks,
        reads_per_chunk=streamed.num_reads / streamed.num_chunks,
        requests_per_s=whole.num_requests / whole.seconds,
    )


def run_rounds(servers: list[Server], arguments: argparse.Namespace) -> Rounds:
    """Alternate between the servers; the first round only warms them."""
    rounds: dict[str, list[Figures]] = {server.name: [] for server in servers}
    for index in range(arguments.rounds + 1):
        shift = index % len(servers)
        for server in [*servers[shift:], *servers[:shift]]:
            figures = run_round(
                server,
                seconds=arguments.seconds if index else 1.0,
                num_connections=arguments.connections,
                num_streams=arguments.streams,
            )
            if index:
                rounds[server.name].append(figures)
    return rounds


def main() -> int:
    """Run the benchmark; 1 where a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each load, twice a round")
    parser.add_argument("--connections", type=int, default=32)
    # Enough of them that what a server does by the clock is small beside what it does by chunk.
    parser.add_argument("--streams", type=int, default=256)
    parser.add_argument("--peer", choices=(ROUTER, LITELLM), action="append", help="only these")
    parser.add_argument("--json", type=Path, help="write the figures here")
    arguments = parser.parse_args()
    peers = arguments.peer or [ROUTER, LITELLM]
    starts = {ROUTER: vllm_router, LITELLM: litellm_proxy}
    with tempfile.TemporaryDirectory(prefix="maas-bench-") as name, ExitStack() as stack:
        folder = Path(name)
        engine = stack.enter_context(mock_engine(folder))
        servers = [
            engine,
            stack.enter_context(bare_relay(folder, engine.port)),
            stack.enter_context(our_gateway(folder, engine.port, name=OURS, set_limits=set_quota)),
            stack.enter_context(our_gateway(folder, engine.port, name=EVERYTHING)),
        ]
        for peer in peers:
            running = starts[peer](folder, engine.port, peer_venv(peer))
            servers.append(stack.enter_context(running))
        rounds = run_rounds(servers, arguments)
    print(f"{time.strftime('%Y-%m-%d')}, {host.machine()}, {os.cpu_count()} cores, ", end="")
    print(f"medians of {arguments.rounds} alternating rounds; keys checked by ours and LiteLLM\n")
    print(table(rounds))
    if arguments.json:
        figures = {name: [asdict(row) for row in rows] for name, rows in rounds.items()}
        arguments.json.write_text(json.dumps(figures, indent=2), encoding="utf-8")
    return 0 if all(goal.is_met for goal in goals(rounds)) else 1


if __name__ == "__main__":
    raise SystemExit(main())
