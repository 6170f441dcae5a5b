"""``python -m maas.finetune.data FILE``: the data check in a process of its own, as JSON.

Whatever the data does, the caller gets a report or this process ends: its memory is bounded, and
the caller bounds its time.
"""

import argparse
import resource
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from maas.core.errors import DataRefused
from maas.finetune.data.check import Checker, Measure, Measured
from maas.finetune.data.rendering import Renderer
from maas.finetune.recipe import Method

# Addresses, of which libraries take much more than memory.
MAX_MEMORY_BYTES = 16 * 2**30


def _measure_with(renderer: Renderer, max_length: int) -> Measure:
    def measure(record: Mapping[str, Any], method: Method) -> Measured:
        try:
            return count(record, method)
        except DataRefused:
            raise
        except Exception as error:
            raise DataRefused(f"it cannot be rendered: {error!r}"[:300]) from error

    def count(record: Mapping[str, Any], method: Method) -> Measured:
        if method == "dpo":
            pair = renderer.render_pair(record)
            examples = [pair.chosen, pair.rejected]
        elif method == "pretrain":
            examples = [*renderer.render_text(record["text"], max_length=max_length)]
        else:
            messages, tools = record["messages"], record.get("tools")
            too_many = renderer.num_tokens_over(messages, tools, max_length)
            if too_many:
                return Measured(too_many, too_many, too_many)
            examples = renderer.render(messages, tools)
        lengths = [len(example.input_ids) for example in examples]
        targets = sum(example.num_targets for example in examples)
        return Measured(sum(lengths), targets, max(lengths, default=0))

    return measure


def _bound_memory() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = MAX_MEMORY_BYTES if hard == resource.RLIM_INFINITY else min(hard, MAX_MEMORY_BYTES)
    resource.setrlimit(resource.RLIMIT_AS, (most, hard))


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
    _bound_memory()
    measure, marks, why_not = None, (), None
    if asked.model_dir is not None:
        try:
            renderer = Renderer(asked.model_dir)
            measure, marks = _measure_with(renderer, asked.max_length), renderer.marks
        except Exception as error:  # noqa: BLE001 - a tokenizer may fail in any way; all else is told
            why_not = str(error)
    checker = Checker(asked.method, max_length=asked.max_length, measure=measure, marks=marks)
    if why_not is not None:
        checker.tell_no_tokenizer(asked.file, why_not)
    report = checker.check(asked.file, asked.validation)
    sys.stdout.write(report.model_dump_json() + "\n")
    return 1 if report.num_errors else 0


if __name__ == "__main__":
    sys.exit(main())
