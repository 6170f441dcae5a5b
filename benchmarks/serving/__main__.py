"""The platform next to its own engine called directly: ``python -m benchmarks.serving``.

Starts ``maas up`` in a temporary ``MAAS_HOME``, then alternates rounds against the engine's own
URL and the gateway's, same prompts, same lengths. Prints tok/s, time to first token, start time
and memory, each with its goal.
"""

import argparse
import asyncio
import json
import platform as host
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import aiohttp

from benchmarks.serving.running import MODEL, RunningPlatform

STREAMS = (1, 4, 16)
# Seconds from a warm `make up` to the first streamed token.
MAX_START_S = {"vllm": 45, "onnx": 15}
TTFT_MAX_TOKENS = 4
PROMPT = "Write a long story about a lighthouse keeper and the sea. Part {n}."


@dataclass(frozen=True)
class Round:
    """One round: ``num_streams`` requests at once.

    Attributes:
        tokens_per_s: All streams together.
        ttft_s: Time to first token, by stream.
    """

    tokens_per_s: float
    ttft_s: tuple[float, ...]


async def _one(
    client: aiohttp.ClientSession, url: str, key: str, *, prompt: str, max_tokens: int
) -> tuple[int, float]:
    body = {
        "model": MODEL,
        "prompt": prompt,
        "max_tokens": max_tokens,
        "temperature": 0,
        "seed": 1,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    started = time.perf_counter()
    first, num_tokens = 0.0, 0
    headers = {"Authorization": f"Bearer {key}"}
    async with client.post(f"{url}/v1/completions", json=body, headers=headers) as response:
        response.raise_for_status()
        async for line in response.content:
            if not line.startswith(b"data: {"):
                continue
            first = first or time.perf_counter() - started
            if b'"usage":{' in line:
                num_tokens = json.loads(line[6:])["usage"]["completion_tokens"]
    return num_tokens, first


async def run_round(
    client: aiohttp.ClientSession, url: str, key: str, *, num_streams: int, max_tokens: int
) -> Round:
    """Run one round against one server."""
    started = time.perf_counter()
    done = await asyncio.gather(
        *(
            _one(client, url, key, prompt=PROMPT.format(n=n), max_tokens=max_tokens)
            for n in range(num_streams)
        )
    )
    seconds = time.perf_counter() - started
    return Round(sum(tokens for tokens, _ in done) / seconds, tuple(first for _, first in done))


@dataclass(frozen=True)
class Comparison:
    """Bare engine and platform at one number of streams; medians over the rounds.

    Attributes:
        share: Median over pairs of rounds of the platform's tok/s over the engine's.
        engine_ttft_ms: Median over all streams of all rounds, milliseconds.
    """

    num_streams: int
    engine_tokens_per_s: float
    platform_tokens_per_s: float
    share: float
    engine_ttft_ms: float
    platform_ttft_ms: float

    @property
    def added_ttft_ms(self) -> float:
        """Milliseconds that the platform adds to the time to first token."""
        return self.platform_ttft_ms - self.engine_ttft_ms


@dataclass(frozen=True)
class Servers:
    """What is compared."""

    engine_url: str
    gateway_url: str
    key: str

    async def pairs(
        self, client: aiohttp.ClientSession, *, num_rounds: int, num_streams: int, max_tokens: int
    ) -> list[tuple[Round, Round]]:
        """Run rounds against both, bare engine and platform; which goes first alternates."""
        pairs: list[tuple[Round, Round]] = []
        for index in range(num_rounds + 1):
            order = [self.engine_url, self.gateway_url]
            found: dict[str, Round] = {}
            for url in order if index % 2 else reversed(order):
                found[url] = await run_round(
                    client, url, self.key, num_streams=num_streams, max_tokens=max_tokens
                )
            if index:  # the first pair warms connections and the prefix cache
                pairs.append((found[self.engine_url], found[self.gateway_url]))
        return pairs


async def compare(
    servers: Servers, *, num_rounds: int, max_tokens: int, num_ttft_rounds: int
) -> list[Comparison]:
    """Compare at each number of streams.

    Throughput wants few long rounds, the time to first token many short ones: within a round the
    streams share the engine's steps, so its spread is that of a step, tens of milliseconds.
    """
    results: list[Comparison] = []
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as client:
        for num_streams in STREAMS:
            long = await servers.pairs(
                client, num_rounds=num_rounds, num_streams=num_streams, max_tokens=max_tokens
            )
            short = await servers.pairs(
                client,
                num_rounds=num_ttft_rounds,
                num_streams=num_streams,
                max_tokens=TTFT_MAX_TOKENS,
            )
            results.append(
                Comparison(
                    num_streams=num_streams,
                    engine_tokens_per_s=median(e.tokens_per_s for e, _ in long),
                    platform_tokens_per_s=median(p.tokens_per_s for _, p in long),
                    share=median(p.tokens_per_s / e.tokens_per_s for e, p in long),
                    engine_ttft_ms=1000 * median(t for e, _ in short for t in e.ttft_s),
                    platform_ttft_ms=1000 * median(t for _, p in short for t in p.ttft_s),
                )
            )
    return results


def _mark(is_met: bool) -> str:
    return "met" if is_met else "MISSED"


def report(
    results: list[Comparison],
    *,
    start_s: float,
    max_start_s: float,
    idle_bytes: int,
    port_s: float,
) -> str:
    """Return the tables as Markdown."""
    lines = [
        "| streams | engine tok/s | platform tok/s | share (goal >= 97 %) | engine TTFT p50 "
        "| added TTFT p50 (goal <= 5 ms) |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r.num_streams} | {r.engine_tokens_per_s:.1f} | {r.platform_tokens_per_s:.1f} "
        f"| {r.share:.1%} {_mark(r.share >= 0.97)} | {r.engine_ttft_ms:.1f} ms "
        f"| {r.added_ttft_ms:+.1f} ms {_mark(r.added_ttft_ms <= 5)} |"
        for r in results
    ]
    gib = idle_bytes / 2**30
    lines += [
        "",
        "| what | measured | goal | |",
        "|---|---|---|---|",
        f"| warm start to first streamed token | {start_s:.1f} s "
        f"| <= {max_start_s:.0f} s | {_mark(start_s <= max_start_s)} |",
        f"| of which until everything answers | {port_s:.1f} s | | |",
        f"| idle memory (PSS) of all but the engine | {gib:.2f} GiB | < 1.5 GB "
        f"| {_mark(idle_bytes < 1.5e9)} |",
    ]
    return "\n".join(lines)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", choices=MAX_START_S, default="vllm")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--ttft-rounds", type=int, default=40, help="short ones, for first tokens")
    parser.add_argument("--json", type=Path, help="write the figures here")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="maas-bench-") as folder:
        home = Path(folder)
        # Twice: the first start prepares weights and fills caches, the second one is the warm one.
        with RunningPlatform(home, arguments.engine):
            pass
        with RunningPlatform(home, arguments.engine) as running:
            first_token_s = running.first_token_s()
            time.sleep(5)
            idle_bytes = running.idle_bytes()
            results = asyncio.run(
                compare(
                    Servers(running.engine_url(), running.url, running.key),
                    num_rounds=arguments.rounds,
                    max_tokens=arguments.max_tokens,
                    num_ttft_rounds=arguments.ttft_rounds,
                )
            )
            what = f"{host.machine()}, {MODEL}, {arguments.engine}"
            rounds = f"medians of {arguments.rounds} alternating rounds"
            print(
                f"{time.strftime('%Y-%m-%d')}, {what}, {rounds} of {arguments.max_tokens} tokens\n"
            )
            print(
                report(
                    results,
                    start_s=first_token_s,
                    max_start_s=MAX_START_S[arguments.engine],
                    idle_bytes=idle_bytes,
                    port_s=running.ready_s,
                )
            )
    if arguments.json:
        figures = {"streams": [asdict(r) for r in results], "first_token_s": first_token_s}
        figures["idle_bytes"] = idle_bytes
        arguments.json.write_text(json.dumps(figures, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
