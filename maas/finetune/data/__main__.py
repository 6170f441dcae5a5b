"""``python -m maas.finetune.data FILE``: the data check in a process of its own, as JSON."""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from maas.finetune.data.check import Checker, Measure, Measured
from maas.finetune.data.rendering import Renderer
from maas.finetune.recipe import Method


def _measure_with(renderer: Renderer, max_length: int) -> Measure:
    def measure(record: Mapping[str, Any], method: Method) -> Measured:
        if method == "dpo":
            pair = renderer.render_pair(record)
            examples = [pair.chosen, pair.rejected]
        elif method == "pretrain":
            examples = [*renderer.render_text(record["text"], max_length=max_length)]
        else:
            examples = renderer.render(record["messages"], record.get("tools"))
        lengths = [len(example.input_ids) for example in examples]
        targets = sum(example.num_targets for example in examples)
        return Measured(sum(lengths), targets, max(lengths, default=0))

    return measure


def main(arguments: list[str] | None = None) -> int:
    """Check files; print the report.

    Returns:
        1 where there are errors.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("file", type=Path)
    parser.add_argument("--validation", type=Path)
    parser.add_argument("--method", choices=("supervised", "dpo", "pretrain"), required=True)
    parser.add_argument("--model-dir", type=Path)
    parser.add_argument("--max-length", type=int, default=2**20)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args(arguments)
    measure = None
    if asked.model_dir is not None:
        measure = _measure_with(Renderer(asked.model_dir), asked.max_length)
    checker = Checker(asked.method, max_length=asked.max_length, measure=measure)
    report = checker.check(asked.file, asked.validation)
    sys.stdout.write(report.model_dump_json() + "\n")
    return 1 if report.num_errors else 0


if __name__ == "__main__":
    sys.exit(main())
