"""The peer's side: llama-cpp-python in a process of its own, asked line by line (JSON).

Run by the peer's Python, so nothing of ours is imported. Operations: ``generate`` (prompt, n) tells
the seconds to the first token and to the last; ``endings`` (context and ending as tokens) tells the
mean log probability of each ending.
"""

import json
import math
import sys
import time

from llama_cpp import Llama  # pyright: ignore[reportMissingImports]


def generate(model: Llama, prompt: list[int], num_tokens: int) -> dict[str, float]:
    """Answer greedily, exactly so many tokens."""
    model.reset()
    started = time.perf_counter()
    first = 0.0
    for count, _ in enumerate(model.generate(prompt, temp=0.0), start=1):
        if count == 1:
            first = time.perf_counter()
        if count == num_tokens:
            break
    return {"first_s": first - started, "rest_s": time.perf_counter() - first}


def ending(model: Llama, tokens: list[int], start: int) -> float:
    """Return the mean log probability of the tokens from ``start`` on."""
    model.reset()
    model.eval(tokens)
    total = 0.0
    for place in range(start, len(tokens)):
        row = model.scores[place - 1]
        peak = float(row.max())
        norm = peak + math.log(float(sum(math.exp(float(value) - peak) for value in row)))
        total += float(row[tokens[place]]) - norm
    return total / (len(tokens) - start)


def main() -> None:
    """Answer operations until standard input ends."""
    path, threads = sys.argv[1], int(sys.argv[2])
    size = {"n_ctx": 2048, "n_batch": 512, "verbose": False}
    fast = Llama(path, n_threads=threads, n_threads_batch=threads, **size)
    scoring: Llama | None = None
    sys.stdout.write(json.dumps({"ready": True}) + "\n")
    sys.stdout.flush()
    for line in sys.stdin:
        asked = json.loads(line)
        if asked["op"] == "generate":
            told = generate(fast, asked["prompt"], asked["n"])
        else:
            if scoring is None:
                short = {**size, "n_ctx": 128}
                scoring = Llama(path, n_threads=threads, logits_all=True, **short)
            told = {"scores": [ending(scoring, *pair) for pair in asked["endings"]]}
        sys.stdout.write(json.dumps(told) + "\n")
        sys.stdout.flush()


main()
