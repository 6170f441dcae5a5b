"""What the gateway must know of a model: a few facts of its card."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class ModelFacts:
    """Facts of one model.

    Attributes:
        context: Longest prompt and answer in tokens; none where nobody knows.
        tokenizer_path: ``tokenizer.json`` for exact counts; none where it is not here.
    """

    id: str
    owned_by: str
    context: int | None = None
    task: Literal["generate", "embed"] | None = None
    is_multimodal: bool = False
    tokenizer_path: Path | None = None
