"""Reads checked training data into examples."""

import json
from collections.abc import Iterator
from pathlib import Path

from maas.core.errors import DataRefused
from maas.finetune.data.rendering import PreferencePair, Renderer, TokenisedExample
from maas.finetune.recipe import Method
from maas.finetune.train.objectives import Example


def read_examples(
    file: Path, renderer: Renderer, *, method: Method, max_length: int
) -> list[Example]:
    """Return all examples of a file.

    Raises:
        DataRefused: One cannot be rendered, or is too long; the message names the line.
    """
    examples = [
        example
        for line, text in _lines(file)
        for example in _of_line(text, line, renderer, method, max_length)
    ]
    if not examples:
        raise DataRefused(f"{file.name} holds nothing to learn")
    return examples


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    if file.suffix == ".txt":
        yield 1, json.dumps({"text": file.read_text(encoding="utf-8-sig")})
        return
    with file.open(encoding="utf-8-sig") as stream:
        for number, line in enumerate(stream, start=1):
            if line.strip():
                yield number, line


def _of_line(
    text: str, line: int, renderer: Renderer, method: Method, max_length: int
) -> list[Example]:
    record = json.loads(text)
    try:
        match method:
            case "supervised":
                found: list[Example] = [*renderer.render(record["messages"], record.get("tools"))]
            case "dpo":
                found = [renderer.render_pair(record)]
            case "pretrain":
                return [*renderer.render_text(record["text"], max_length=max_length)]
    except DataRefused as error:
        raise DataRefused(f"line {line}: {error.message}") from error
    for example in found:
        if length_of(example) > max_length:
            raise DataRefused(
                f"line {line}: {length_of(example)} tokens are more than {max_length}"
            )
    return [example for example in found if not is_empty(example)]


def length_of(example: Example) -> int:
    """Return the tokens of an example, of the longer answer of a pair."""
    if isinstance(example, PreferencePair):
        return max(len(example.chosen.input_ids), len(example.rejected.input_ids))
    return len(example.input_ids)


def num_tokens_of(example: Example) -> int:
    """Return the tokens that go through the model to learn an example."""
    if isinstance(example, PreferencePair):
        return len(example.chosen.input_ids) + len(example.rejected.input_ids)
    return len(example.input_ids)


def is_empty(example: Example) -> bool:
    """Say whether there is nothing to learn from an example."""
    parts: tuple[TokenisedExample, ...] = (
        (example.chosen, example.rejected) if isinstance(example, PreferencePair) else (example,)
    )
    return any(part.num_targets == 0 for part in parts)
