"""Text that a tokenizer takes for a control token: in an answer it would be learned as one."""

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from maas.finetune.data.records import Finding, Record
from maas.finetune.recipe import Method


class Marks:
    """Looks for a tokenizer's control tokens in what people wrote.

    Serving reads them in a question as control tokens too, so there they are a warning; learned,
    a model would end its turn, or begin another's, in the middle of an answer.

    Args:
        marks: The control tokens, as they are written.
    """

    def __init__(self, marks: Collection[str]) -> None:
        longest_first = sorted((mark for mark in marks if mark), key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first))) if marks else None

    def findings(self, record: Record, method: Method) -> Iterator[Finding]:
        """Yield where a record that is well formed holds one, once for each message."""
        # Plain text that was joined of documents holds the marks of their ends on purpose.
        if self._pattern is None or method == "pretrain":
            return
        for at, message, is_learned in _messages(record, method):
            for field, text in _texts(message, at):
                found = self._pattern.search(text)
                if found is not None:
                    yield _finding(field, found[0], is_learned=is_learned)
                    break


def _finding(field: str, mark: str, *, is_learned: bool) -> Finding:
    what = "the model would learn to write it" if is_learned else "the model reads it as one"
    return Finding(
        "control_token",
        field,
        f"holds {mark!r}, a control token of this model: {what}",
        "write it in another way",
        is_warning=not is_learned,
    )


def _messages(record: Record, method: Method) -> Iterator[tuple[str, Mapping[str, Any], bool]]:
    """Yield each message with its place, and whether it is learned."""
    if method == "supervised":
        for index, message in enumerate(record["messages"]):
            is_learned = message["role"] == "assistant" and message.get("weight") != 0
            yield f"messages[{index}]", message, is_learned
        return
    for index, message in enumerate(record["input"]["messages"]):
        yield f"input.messages[{index}]", message, False
    for name in ("preferred_output", "non_preferred_output"):
        for index, message in enumerate(record[name]):
            yield f"{name}[{index}]", message, index == len(record[name]) - 1


def _texts(message: Mapping[str, Any], at: str) -> Iterator[tuple[str, str]]:
    content = message.get("content")
    if isinstance(content, str):
        yield f"{at}.content", content
    for index, part in enumerate(content if isinstance(content, list) else ()):
        yield f"{at}.content[{index}].text", part["text"]
    for index, call in enumerate(message.get("tool_calls") or ()):
        for name in ("name", "arguments"):
            yield f"{at}.tool_calls[{index}].function.{name}", call["function"][name]
