"""What can be wrong with training data, and the report that lists it. Light."""

from collections import Counter
from typing import Literal

from pydantic import BaseModel, ConfigDict

MAX_LISTED_PER_CODE = 50


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Problem(_Part):
    """Something wrong in one place.

    Attributes:
        line: From 1; 0 for the file as a whole.
        field: Path within the line's object; empty for the line as a whole.
        fix: What to do about it.
    """

    severity: Literal["error", "warning"]
    code: str
    file: str
    line: int
    field: str
    message: str
    fix: str


class Tokens(_Part):
    """How long examples are, in tokens."""

    total: int = 0
    targets: int = 0
    p50: int = 0
    p95: int = 0
    max: int = 0


class DataReport(_Part):
    """All that was found, at once; of each kind the first places, and how many there are."""

    errors: tuple[Problem, ...]
    warnings: tuple[Problem, ...]
    num_errors: int
    num_warnings: int
    counts: dict[str, int]
    num_examples: int
    num_validation_examples: int
    num_tokens: int
    num_validation_tokens: int
    tokens: Tokens
    are_tokens_counted: bool


class Problems:
    """Collects problems; keeps the first of each kind and counts the rest."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, str]] = Counter()
        self._listed: list[Problem] = []

    def add(self, problem: Problem) -> None:
        """Take a problem."""
        key = (problem.severity, problem.code)
        self._counts[key] += 1
        if self._counts[key] <= MAX_LISTED_PER_CODE:
            self._listed.append(problem)

    def listed(self, severity: str) -> tuple[Problem, ...]:
        """Return those of a severity that are listed, in the order they were found."""
        return tuple(problem for problem in self._listed if problem.severity == severity)

    def count(self, severity: str) -> int:
        """Return how many there are of a severity."""
        return sum(number for (kind, _), number in self._counts.items() if kind == severity)

    def counts(self) -> dict[str, int]:
        """Return how many there are of each kind."""
        return {code: number for (_, code), number in sorted(self._counts.items())}
