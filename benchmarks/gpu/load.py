"""Sends a wave of equal streams to an OpenAI-compatible server and says how fast they decode.

All streams of a wave start together and generate the same number of tokens, so that for most
of the wave every one of them is decoding. Decode speed is taken over just that window: from
the moment the last stream has its first token until the first stream has its last.

The client must not be what is measured: it does not decode a chunk, it counts line ends (an
SSE event has exactly two, however it was cut into reads) and reads only the last event, whose
usage says how many tokens the events carried.
"""

import asyncio
import json
import math
import random
import statistics
import time
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import aiohttp

_TAIL_BYTES = 4096
# A stream ends with its usage and ``[DONE]``: two events that carry no token.
_END_LINES = 4
# Ids below are the special words of the benchmark's tokenizer.
_FIRST_ORDINARY_TOKEN = 2


@dataclass(frozen=True)
class Target:
    """A server to send to.

    Attributes:
        url: Base URL without ``/v1``.
        models: Names to ask for; streams take them in turn.
        key: API key, if it wants one.
    """

    name: str
    url: str
    models: tuple[str, ...]
    key: str | None = None


@dataclass(frozen=True)
class WaveSize:
    """What a wave consists of; lengths in tokens."""

    num_streams: int
    prompt_len: int
    output_len: int
    vocab_size: int


@dataclass
class StreamTrace:
    """When what arrived on one stream.

    Attributes:
        times: Clock reading of each read that held a line end.
        num_lines: Line ends in each of those reads.
        ended: Clock reading at the end of the stream.
        num_tokens: Tokens the server says it sent.
    """

    started: float
    times: list[float] = field(default_factory=list)
    num_lines: list[int] = field(default_factory=list)
    ended: float = 0.0
    num_tokens: int = 0

    def tokens_until(self, moment: float) -> float:
        """Return the tokens that had arrived at ``moment``."""
        lines = list(accumulate(self.num_lines, initial=0))
        share = lines[bisect_right(self.times, moment)] / (lines[-1] - _END_LINES)
        return self.num_tokens * min(share, 1.0)


@dataclass(frozen=True)
class WaveResult:
    """How a wave went.

    Attributes:
        decode_tokens_s: Over the window in which every stream decoded; None: there was none.
        mean_context: Prompt and answer so far in that window, mean over streams, in tokens.
        output_tokens_s: All tokens over the whole wave, prefill included.
        first_token_s: Median over the streams.
        p95_s: Longest stream but the slowest 5 %, from request to end.
        client_cpu: Share of one processor this client took; near 1 it is the limit itself.
    """

    decode_tokens_s: float | None
    mean_context: float
    output_tokens_s: float
    first_token_s: float
    p95_s: float
    client_cpu: float


def _p95(values: Sequence[float]) -> float:
    """Return the nearest-rank 95th percentile."""
    return sorted(values)[math.ceil(0.95 * len(values)) - 1]


def summarize(
    traces: Sequence[StreamTrace], *, prompt_len: int, seconds: float, client_cpu: float
) -> WaveResult:
    """Return the result of a wave from what its streams saw."""
    begin = max(trace.times[0] for trace in traces)
    end = min(trace.times[-1] for trace in traces)
    decode_tokens_s, mean_context = None, float(prompt_len)
    if end > begin:
        before = [trace.tokens_until(begin) for trace in traces]
        after = [trace.tokens_until(end) for trace in traces]
        decode_tokens_s = (sum(after) - sum(before)) / (end - begin)
        mean_context += (statistics.fmean(before) + statistics.fmean(after)) / 2
    return WaveResult(
        decode_tokens_s=decode_tokens_s,
        mean_context=mean_context,
        output_tokens_s=sum(trace.num_tokens for trace in traces) / seconds,
        first_token_s=statistics.median(trace.times[0] - trace.started for trace in traces),
        p95_s=_p95([trace.ended - trace.started for trace in traces]),
        client_cpu=client_cpu,
    )


def completion_tokens(tail: bytes) -> int:
    """Return the count in the last usage of a stream's end.

    Raises:
        ValueError: The stream ended without one: it broke off, or held an error.
    """
    for line in reversed(tail.splitlines()):
        if line.startswith(b"data: {"):
            event = json.loads(line.removeprefix(b"data: "))
            if event.get("usage"):
                return int(event["usage"]["completion_tokens"])
            break
    raise ValueError(f"stream ended without usage: {tail[-300:].decode(errors='replace')}")


async def _stream(
    client: aiohttp.ClientSession, target: Target, model: str, size: WaveSize, seed: str
) -> StreamTrace:
    # Fresh ids in every request: no prefix cache can help.
    # A seeded load, no secret.
    draw = random.Random(seed)  # noqa: S311
    body = {
        "model": model,
        "prompt": [
            draw.randrange(_FIRST_ORDINARY_TOKEN, size.vocab_size) for _ in range(size.prompt_len)
        ],
        "max_tokens": size.output_len,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    headers = {"Authorization": f"Bearer {target.key}"} if target.key else {}
    trace, tail = StreamTrace(time.perf_counter()), b""
    url = f"{target.url}/v1/completions"
    async with client.post(url, json=body, headers=headers) as response:
        if response.status != 200:
            raise ValueError(f"{target.name} answered {response.status}: {await response.text()}")
        async for data in response.content.iter_any():
            if num_lines := data.count(b"\n"):
                trace.times.append(time.perf_counter())
                trace.num_lines.append(num_lines)
            tail = (tail + data)[-_TAIL_BYTES:]
    trace.ended, trace.num_tokens = time.perf_counter(), completion_tokens(tail)
    return trace


async def run_wave(
    client: aiohttp.ClientSession, target: Target, size: WaveSize, *, seed: str
) -> WaveResult:
    """Send one wave and wait for all of it.

    Raises:
        ValueError: A stream was refused, broke off, or was shorter than asked for.
    """
    started, cpu_started = time.perf_counter(), time.process_time()
    models = [target.models[i % len(target.models)] for i in range(size.num_streams)]
    traces = await asyncio.gather(
        *(_stream(client, target, model, size, f"{seed}/{i}") for i, model in enumerate(models))
    )
    seconds = time.perf_counter() - started
    short = [trace.num_tokens for trace in traces if trace.num_tokens != size.output_len]
    if short:
        raise ValueError(f"{target.name}: {len(short)} streams had {short[0]} tokens, not all")
    return summarize(
        traces,
        prompt_len=size.prompt_len,
        seconds=seconds,
        client_cpu=(time.process_time() - cpu_started) / seconds,
    )
