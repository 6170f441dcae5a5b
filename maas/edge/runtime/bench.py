"""Measures a bundle on this machine: what its cost card and ``maas-edge bench`` say.

Run as ``python -m maas.edge.runtime.bench FOLDER``: memory is a process's, so each has its own.
"""

import argparse
import platform
import queue
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import msgspec

from maas.core.errors import EngineError, MaasError
from maas.edge.runtime.energy import EnergyMeter
from maas.edge.runtime.engine.contract import Engine, Output, SamplingParams
from maas.edge.runtime.engine.core import OnnxEngine
from maas.edge.runtime.engine.embed import EmbedEngine, is_embedding
from maas.edge.runtime.engine.options import EngineOptions

NUM_PROMPT_TOKENS = 256
NUM_NEW_TOKENS = 64
_ROUNDS = 3


class CostCard(msgspec.Struct, frozen=True, kw_only=True):
    """What a bundle costs where it was measured.

    Attributes:
        size_bytes: Of all its parts.
        ram_peak_bytes: Of the process, with one request of 256 and 64 tokens.
        ram_model_bytes: Of a process of ``maas-edge`` after the largest steps there are with the
            default flags, keys and values aside.
        kv_bytes_per_token: Of keys and values; 0 for embeddings.
        load_s: From its files to the first request.
        prefill_tok_s: Prompt tokens a second, one request.
        decode_tok_s: Answer tokens a second, one request, nothing guessed; none for embeddings.
        energy_j_per_token: Of a token, of prompts and answers alike; none where the machine cannot
            tell.
        energy_note: How it was measured, or why not.
    """

    size_bytes: int
    ram_peak_bytes: int
    ram_model_bytes: int
    kv_bytes_per_token: int
    load_s: float
    prefill_tok_s: float
    decode_tok_s: float | None
    energy_j_per_token: float | None
    energy_note: str
    num_threads: int
    machine: str


class Footprint(msgspec.Struct, frozen=True):
    """What a process takes that answers with a bundle, but for the keys and values it holds."""

    ram_model_bytes: int
    kv_bytes_per_token: int

    def plain(self) -> dict[str, int]:
        """Return it as JSON has it."""
        return msgspec.to_builtins(self)


def measure_cost(folder: Path, num_threads: int) -> CostCard:
    """Measure a bundle's cost in this process, and in one of its own what it takes at most.

    Raises:
        ConfigError: The folder holds no model.
        EngineError: It does not answer.
    """
    started = time.perf_counter()
    # Nothing guessed, nothing remembered: what every token costs.
    options = EngineOptions(
        num_threads=num_threads, max_num_seqs=1, prefix_cache_bytes=0, max_draft_tokens=0
    )
    engine = EmbedEngine(folder, options) if is_embedding(folder) else OnnxEngine(folder, options)
    load_s = time.perf_counter() - started
    try:
        meter = EnergyMeter()
        measure = _embed if isinstance(engine, EmbedEngine) else _run
        runs = [measure(engine, shift) for shift in range(_ROUNDS)]
        joules = meter.joules_since_start()
    finally:
        engine.close()
    num_new = 0 if isinstance(engine, EmbedEngine) else NUM_NEW_TOKENS
    num_tokens = _ROUNDS * (num_new + NUM_PROMPT_TOKENS)
    ram_peak_bytes = peak_bytes()
    footprint = measure_footprint(folder, num_threads)
    return CostCard(
        size_bytes=sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
        ram_peak_bytes=ram_peak_bytes,
        ram_model_bytes=footprint.ram_model_bytes,
        kv_bytes_per_token=footprint.kv_bytes_per_token,
        load_s=round(load_s, 3),
        prefill_tok_s=round(statistics.median(run[0] for run in runs), 1),
        decode_tok_s=round(statistics.median(run[1] for run in runs), 1) if num_new else None,
        energy_j_per_token=None if joules is None else round(joules / num_tokens, 4),
        energy_note=meter.note,
        num_threads=options.threads,
        machine=f"{platform.machine()}, {processor_name()}",
    )


def measure_footprint(folder: Path, num_threads: int) -> Footprint:
    """Measure the memory that ``maas-edge`` takes with a bundle: in a process like those it runs.

    Raises:
        EngineError: It does not answer.
    """
    command = [sys.executable, "-P", "-m", "maas.edge.runtime.cli", "rehearse", str(folder)]
    done = subprocess.run(  # noqa: S603 - our own module
        [*command, "--threads", str(num_threads)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise EngineError((done.stderr.strip().splitlines() or ["it said nothing"])[-1])
    return msgspec.json.decode(done.stdout, type=Footprint)


def _embed(engine: Engine, shift: int) -> tuple[float, float]:
    """Return the tokens a second of one text."""
    length = min(NUM_PROMPT_TOKENS, engine.info.max_model_len)
    text = [(31 * place + shift) % engine.info.vocab_size for place in range(length)]
    started = time.perf_counter()
    engine.embed([text])
    return length / (time.perf_counter() - started), 0.0


def _run(engine: Engine, shift: int) -> tuple[float, float]:
    """Return prefill and decode tokens a second of one request."""
    outputs: queue.Queue[tuple[float, Output]] = queue.Queue()
    vocab_size = engine.info.vocab_size
    prompt = [(7919 * i + 31 * shift) % (vocab_size - 200) + 100 for i in range(NUM_PROMPT_TOKENS)]
    params = SamplingParams(NUM_NEW_TOKENS, temperature=0.0, ignore_eos=True)
    started = time.perf_counter()
    engine.submit(prompt, params, lambda output: outputs.put((time.perf_counter(), output)))
    times: list[float] = []
    while True:
        at, output = outputs.get()
        times += [at] * len(output.token_ids)
        if output.finish_reason is not None:
            break
    return len(prompt) / (times[0] - started), (len(times) - 1) / (times[-1] - times[0])


def peak_bytes() -> int:
    """Return the most memory this process had; what its parent had before is not counted."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def processor_name() -> str:
    """Return the name of this machine's processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or "unknown processor"
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown processor"


def main() -> int:
    """Print a folder's cost card; the exit code."""
    parser = argparse.ArgumentParser(prog="maas.edge.runtime.bench")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--threads", type=int, default=0)
    given = parser.parse_args()
    try:
        card = measure_cost(given.folder, given.threads)
    except MaasError as error:
        sys.stderr.write(f"{error.message}\n")
        return 1
    sys.stdout.write(msgspec.json.encode(card).decode() + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
