"""``python -m benchmarks.edge BUNDLE --gguf FILE --peer PYTHON``: prints a table of ratios.

Both sides get the same tokens, threads and lengths, by turns in one run. The peer's Python has
llama-cpp-python; how it was built is in docs/benchmarks.md.
"""

import argparse
import json
import queue
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from maas.edge.quality.scorers import OnnxScorer
from maas.edge.quality.tasks import GOLDEN_PROMPTS, Item, held_tasks
from maas.edge.runtime.bundle.archive import unpack
from maas.edge.runtime.engine.contract import Output, SamplingParams
from maas.edge.runtime.engine.core import OnnxEngine
from maas.edge.runtime.engine.options import EngineOptions

NUM_NEW_TOKENS = 96
PREFILL_TOKENS = 512
NUM_STREAMS = 8
NUM_THREADS = 2
MIN_DECODE, MIN_PREFILL, MIN_STREAMS = 2.0, 1.5, 2.0
_CHAT = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
Tokens = list[int]


@dataclass(frozen=True)
class Timed:
    """Seconds to the first token, and from there to the last."""

    first_s: float
    rest_s: float


@dataclass(frozen=True)
class Ours:
    """The bundle in this process.

    Attributes:
        engine: With what it does by default but the prefix cache, or without guessing too.
    """

    engine: OnnxEngine

    def generate(self, prompts: Sequence[Tokens], num_tokens: int) -> Timed:
        """Answer prompts together."""
        outputs: list[queue.Queue[tuple[float, Output]]] = [queue.Queue() for _ in prompts]
        params = SamplingParams(num_tokens, temperature=0.0, ignore_eos=True)
        started = time.perf_counter()

        def listener(out: queue.Queue[tuple[float, Output]]) -> Callable[[Output], None]:
            return lambda output: out.put((time.perf_counter(), output))

        for prompt, out in zip(prompts, outputs, strict=True):
            self.engine.submit(prompt, params, listener(out))
        first, last = float("inf"), 0.0
        for out in outputs:
            is_over = False
            while not is_over:
                at, output = out.get()
                first, last = min(first, at), max(last, at)
                is_over = output.finish_reason is not None
        return Timed(first - started, last - first)


@dataclass(frozen=True)
class Peer:
    """llama-cpp-python in its own process."""

    process: subprocess.Popen[str]

    def ask(self, operation: dict[str, Any]) -> dict[str, Any]:
        """Have one operation done."""
        if self.process.stdin is None or self.process.stdout is None:
            raise SystemExit("the peer has no pipes")
        self.process.stdin.write(json.dumps(operation) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("the peer ended; what it said is above")
        return json.loads(line)

    def generate(self, prompt: Tokens, num_tokens: int) -> Timed:
        """Answer one prompt."""
        told = self.ask({"op": "generate", "prompt": prompt, "n": num_tokens})
        return Timed(told["first_s"], told["rest_s"])


def verdict(is_met: bool) -> str:
    """Return how a goal is said to have gone."""
    return "met" if is_met else "missed"


def score_text(ours: int, theirs: int, num_items: int) -> str:
    """Return what both sides answer rightly: the bundle no fewer."""
    goal = f"no fewer: {verdict(ours >= theirs)}"
    return f"tasks: {ours} of {num_items} beside {theirs}, {goal}"


def size_text(ours_bytes: int, theirs_bytes: int) -> str:
    """Return the sizes of both files: the bundle's smaller."""
    goal = f"smaller: {verdict(ours_bytes < theirs_bytes)}"
    return f"size: {ours_bytes / 1e6:.1f} MB beside {theirs_bytes / 1e6:.1f} MB, {goal}"


@dataclass(frozen=True)
class Row:
    """One figure of both sides."""

    name: str
    ours: float
    peer: float
    goal: float

    def text(self) -> str:
        """Return it as a line of the table."""
        ratio = self.ours / self.peer
        goal = f">= {self.goal}x {verdict(ratio >= self.goal)}"
        return f"| {self.name} | {self.ours:.0f} | {self.peer:.0f} | {ratio:.2f}x | {goal} |"


def endings_of(item: Item, tokenizer: Tokenizer) -> list[tuple[Tokens, int]]:
    """Return each ending with its context as tokens, and where it begins."""
    context = tokenizer.encode(item.context).ids
    pairs: list[tuple[Tokens, int]] = []
    for ending in item.endings:
        tokens = tokenizer.encode(item.context + ending).ids
        places = zip(context, tokens, strict=False)
        differs = (place for place, (a, b) in enumerate(places) if a != b)
        pairs.append((tokens, next(differs, min(len(context), len(tokens) - 1))))
    return pairs


def our_scores(scorer: OnnxScorer, pairs: Sequence[tuple[Tokens, int]]) -> list[float]:
    """Return the mean log probability of each ending."""
    scores: list[float] = []
    for tokens, start in pairs:
        rows = scorer.logits(tokens, start - 1)[:-1].astype(np.float64)
        rows -= rows.max(-1, keepdims=True)
        rows -= np.log(np.exp(rows).sum(-1, keepdims=True))
        scores.append(float(rows[np.arange(len(rows)), tokens[start:]].mean()))
    return scores


def compare_scores(folder: Path, peer: Peer, tokenizer: Tokenizer) -> tuple[int, int, int]:
    """Return the tasks that we do, that the peer does, and how many there are."""
    scorer = OnnxScorer(folder, EngineOptions(num_threads=NUM_THREADS))
    items = held_tasks()
    ours = theirs = 0
    for item in items:
        pairs = endings_of(item, tokenizer)
        told = peer.ask({"op": "endings", "endings": pairs})["scores"]
        ours += int(np.argmax(our_scores(scorer, pairs))) == item.answer
        theirs += int(np.argmax(told)) == item.answer
    return ours, theirs, len(items)


def measure(
    plain: Ours, guessing: Ours, peer: Peer, prompts: list[Tokens], rounds: int
) -> list[Row]:
    """Measure both sides by turns; medians."""
    long = [[(7919 * n + 31 * i) % 40_000 + 100 for n in range(PREFILL_TOKENS)] for i in range(9)]
    figures: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        figures.setdefault(name, []).append(value)

    for turn in range(rounds):
        prompt = prompts[turn % len(prompts)]
        decoded = NUM_NEW_TOKENS - 1
        note("decode", decoded / plain.generate([prompt], NUM_NEW_TOKENS).rest_s)
        note("decode peer", decoded / peer.generate(prompt, NUM_NEW_TOKENS).rest_s)
        note("guessing", decoded / guessing.generate([prompt], NUM_NEW_TOKENS).rest_s)
        text = long[turn % len(long)]
        ours, theirs = plain.generate([text], 32), peer.generate(text, 32)
        note("prefill", len(text) / ours.first_s)
        note("prefill peer", len(text) / theirs.first_s)
        note("far", 31 / ours.rest_s)
        note("far peer", 31 / theirs.rest_s)
        several = [prompts[(turn + n) % len(prompts)] for n in range(NUM_STREAMS)]
        together = plain.generate(several, NUM_NEW_TOKENS)
        note("streams", NUM_STREAMS * NUM_NEW_TOKENS / (together.first_s + together.rest_s))
        alone = [peer.generate(one, NUM_NEW_TOKENS) for one in several]
        total_s = sum(one.first_s + one.rest_s for one in alone)
        note("streams peer", NUM_STREAMS * NUM_NEW_TOKENS / total_s)
    median = {name: statistics.median(values) for name, values in figures.items()}

    def row(name: str, ours: str, theirs: str, goal: float) -> Row:
        return Row(name, median[ours], median[f"{theirs} peer"], goal)

    far, prefill = f"decode after {PREFILL_TOKENS} tokens", f"prefill, {PREFILL_TOKENS} tokens"
    streams = f"{NUM_STREAMS} streams, beside one after the other"
    return [
        row("decode, one stream, nothing guessed", "decode", "decode", MIN_DECODE),
        row("decode, one stream, as it comes", "guessing", "decode", MIN_DECODE),
        row(far, "far", "far", MIN_DECODE),
        row(prefill, "prefill", "prefill", MIN_PREFILL),
        row(streams, "streams", "streams", MIN_STREAMS),
    ]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="benchmarks.edge", description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--gguf", type=Path, required=True)
    parser.add_argument("--peer", default=sys.executable, help="Python with llama-cpp-python")
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    script = Path(__file__).with_name("peer_llama.py")
    command = [given.peer, str(script), str(given.gguf), str(NUM_THREADS)]
    options = EngineOptions(num_threads=NUM_THREADS, prefix_cache_bytes=0, max_model_len=2048)
    with (
        TemporaryDirectory() as scratch,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process,
    ):
        peer = Peer(process)
        if process.stdout is None or not process.stdout.readline():
            raise SystemExit("the peer does not start; what it said is above")
        folder = Path(scratch) / "bundle"
        unpack(given.bundle, folder, None)
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        prompts = [tokenizer.encode(_CHAT.format(text)).ids for text in GOLDEN_PROMPTS]
        plain = Ours(OnnxEngine(folder, replace(options, max_draft_tokens=0)))
        guessing = Ours(OnnxEngine(folder, options))
        measure(plain, guessing, peer, prompts, 1)
        rows = measure(plain, guessing, peer, prompts, given.rounds)
        ours, theirs, num_items = compare_scores(folder, peer, tokenizer)
        for engine in (plain, guessing):
            engine.engine.close()
        if process.stdin is not None:
            process.stdin.close()
    print("| tok/s, medians | bundle | llama-cpp-python | ratio | goal |\n|---|---|---|---|---|")
    for row in rows:
        print(row.text())
    print(score_text(ours, theirs, num_items))
    print(size_text(given.bundle.stat().st_size, given.gguf.stat().st_size))


if __name__ == "__main__":
    main()
