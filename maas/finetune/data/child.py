"""Runs the data check in a process of its own, so that no data can hurt the caller. Light."""

import json
import subprocess
import sys
from pathlib import Path

from maas.core.errors import DataRefused, HostError
from maas.finetune.data.problems import DataReport
from maas.finetune.recipe import Method

TIMEOUT_S = 3600.0


def check_files(
    train: Path,
    validation: Path | None,
    *,
    method: Method,
    model_dir: Path | None,
    max_length: int,
    timeout_s: float = TIMEOUT_S,
) -> DataReport:
    """Return what is wrong with training data, and how many tokens it has.

    Args:
        train: JSON lines, or ``.txt`` for ``pretrain``.
        validation: What is held back.
        method: What the data should teach.
        model_dir: Folder with the tokenizer; none: tokens are not counted.
        max_length: Longest example in tokens.
        timeout_s: How long the check may take.

    Raises:
        DataRefused: It took too long.
        HostError: The check itself ended; the message says what it said last.
    """
    command = [sys.executable, "-m", "maas.finetune.data", str(train.absolute()), "--json"]
    command += ["--method", method, "--max-length", str(max_length)]
    command += ["--model-dir", str(model_dir)] if model_dir else []
    command += ["--validation", str(validation.absolute())] if validation else []
    try:
        done = subprocess.run(  # noqa: S603 - our own module
            command, capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise DataRefused(f"{train.name}: the check took more than {timeout_s:.0f} s") from error
    try:
        return DataReport.model_validate(json.loads(done.stdout))
    except ValueError as error:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise HostError(f"the data check ended with {done.returncode}: {last}") from error
