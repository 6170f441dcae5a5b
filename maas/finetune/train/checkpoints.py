"""Checkpoints: folders that are there whole or not at all, and a run that goes on from one.

    run_dir/checkpoints/
      step-<n>/          adapter (or weights) as served, state.pt, metrics.json
      .step-<n>.new/     being written; thrown away

``state.pt`` holds all that the next step depends on. Only the newest keeps it: older ones are
for serving.
"""

import json
import os
import random
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from maas.core.errors import DiskFull

STATE_FILE = "state.pt"
# Of the other workers, where what is trained is split.
PART_FILE = "state-{rank}.pt"
METRICS_FILE = "metrics.json"
_NO_SPACE = frozenset({28, 122})  # ENOSPC, EDQUOT


class Checkpoints:
    """The checkpoints of one run.

    Args:
        run_dir: The run's folder.
    """

    def __init__(self, run_dir: Path) -> None:
        self._dir = run_dir / "checkpoints"
        self._dir.mkdir(parents=True, exist_ok=True)
        for unfinished in self._dir.glob(".*"):
            if unfinished.is_dir():
                shutil.rmtree(unfinished, ignore_errors=True)
            else:
                unfinished.unlink(missing_ok=True)

    def steps(self) -> list[int]:
        """Return the steps that have a checkpoint, oldest first."""
        return sorted(int(path.name.removeprefix("step-")) for path in self._dir.glob("step-*"))

    def path(self, step: int) -> Path:
        """Return a checkpoint's folder."""
        return self._dir / f"step-{step}"

    def metrics(self, step: int) -> dict[str, Any]:
        """Return what was measured at a checkpoint."""
        return dict(json.loads((self.path(step) / METRICS_FILE).read_text(encoding="utf-8")))

    def save_part(self, step: int, rank: int, state: Mapping[str, Any]) -> None:
        """Write a worker's part, which the first worker's ``save`` takes into the checkpoint.

        Raises:
            DiskFull: There is no room.
        """
        part = self._dir / f".step-{step}.{PART_FILE.format(rank=rank)}"
        try:
            _save(state, part)
        except Exception as error:
            part.unlink(missing_ok=True)
            if _is_full(error):
                raise DiskFull(f"no room for a checkpoint in {self._dir}") from error
            raise

    def save(
        self,
        step: int,
        *,
        write_model: Callable[[Path], None],
        state: Mapping[str, Any],
        metrics: Mapping[str, Any],
    ) -> Path:
        """Write a checkpoint.

        Raises:
            DiskFull: There is no room; nothing of it is left.
        """
        final, new = self.path(step), self._dir / f".step-{step}.new"
        if final.exists():
            return final
        shutil.rmtree(new, ignore_errors=True)
        try:
            new.mkdir()
            write_model(new)
            _save(state, new / STATE_FILE)
            for part in self._dir.glob(f".step-{step}.state-*.pt"):
                part.rename(new / part.name.removeprefix(f".step-{step}."))
            (new / METRICS_FILE).write_text(json.dumps(dict(metrics)), encoding="utf-8")
            for file in new.iterdir():
                _sync(file)
            _sync(new)
            new.rename(final)
            _sync(self._dir)
        except Exception as error:
            shutil.rmtree(new, ignore_errors=True)
            # safetensors and torch wrap the operating system's error in their own.
            if _is_full(error):
                raise DiskFull(f"no room for a checkpoint in {self._dir}") from error
            raise
        return final

    def load_newest(self, rank: int = 0) -> tuple[int, dict[str, Any]] | None:
        """Return step and state of the newest checkpoint that can be gone on from.

        Args:
            rank: Whose part, where each worker has its own.
        """
        for step in reversed(self.steps()):
            folder = self.path(step)
            file = folder / (PART_FILE.format(rank=rank) if rank else STATE_FILE)
            # Written by fewer workers than there are now: the first one's tells so.
            file = file if file.exists() else folder / STATE_FILE
            if file.exists():
                state = torch.load(file, map_location="cpu", weights_only=True)
                _set_rng_state(state.pop("rng"))
                return step, state
        return None

    def prune(self, *, keep: set[int]) -> None:
        """Remove checkpoints but these; of all but the newest remove what only a run needs."""
        steps = self.steps()
        for step in steps:
            if step not in keep:
                shutil.rmtree(self.path(step), ignore_errors=True)
            elif step != steps[-1]:
                for file in self.path(step).glob("state*.pt"):
                    file.unlink()


def _save(state: Mapping[str, Any], path: Path) -> None:
    # Given a path, torch says of a full disk no more than "iostream error".
    with path.open("wb") as out:
        torch.save({**state, "rng": _rng_state()}, out)


def _is_full(error: BaseException) -> bool:
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in _NO_SPACE:
            return True
        if "No space left" in str(seen) or "file write failed" in str(seen):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _rng_state() -> dict[str, Any]:
    version, internal, gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "python": [version, list(internal), gauss],
    }


def _set_rng_state(state: Mapping[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
