"""Searches the settings of a quantised graph: the fastest that keeps enough."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from maas.edge.export.build import PROVIDERS, BuildOptions, build, put_weights
from maas.edge.export.gptq import Grid, Rounded, round_layers, round_weight
from maas.edge.export.spec import ExportSpec
from maas.edge.quality.measure import Likeness, Reference, likeness
from maas.edge.quality.scorers import OnnxScorer
from maas.edge.runtime.engine.options import EngineOptions

# Nats a golden token may lie from the original: the answers stay the original's in kind.
MAX_KL_DIVERGENCE = 0.25
_BATCH_ROWS = 16
Tell = Callable[[float, str], None]


@dataclass(frozen=True)
class Setting:
    """One way to quantise, as tried.

    Attributes:
        block_size: Weights that share a scale.
        body_bits: Of the layers.
        head_bits: Of the head and the embedding.
    """

    block_size: int
    body_bits: int
    head_bits: int


@dataclass(frozen=True)
class Tried:
    """What came of a setting."""

    setting: Setting
    near: Likeness
    size_bytes: int

    def plain(self) -> dict[str, Any]:
        """Return it as the receipt has it."""
        return {
            "block_size": self.setting.block_size,
            "body_bits": self.setting.body_bits,
            "head_bits": self.setting.head_bits,
            "algorithm": "gptq",
            "accuracy_level": 4,
            "kl_divergence": self.near.kl_divergence,
            "greedy_agreement": self.near.greedy_agreement,
            "perplexity_ratio": self.near.perplexity_ratio,
            "size_bytes": self.size_bytes,
        }


# Fastest first. Bits of the head cost time in each step, smaller blocks a little more memory.
SETTINGS = {
    "int4": (Setting(64, 4, 4), Setting(64, 4, 8), Setting(32, 4, 8)),
    "int8": (Setting(64, 8, 8),),
}


@dataclass(frozen=True)
class Source:
    """What is quantised.

    Attributes:
        model_dir: Its files.
        model: Loaded, bfloat16; its weights are changed.
        rows: Calibration text, shape (rows, length).
    """

    model_dir: Path
    model: Any
    rows: Tensor


def search(
    source: Source, reference: Reference, out: Path, *, spec: ExportSpec, tell: Tell
) -> list[Tried]:
    """Try settings until one keeps enough; the last tried is in ``out``.

    Args:
        source: The model.
        reference: What the original does.
        out: A new folder for the graph.
        spec: Says precision and target.
        tell: Told the share done, and what is being done.

    Returns:
        What was tried, in order; if none keeps enough the nearest was built again, and is last.
    """
    tried: list[Tried] = []
    settings = SETTINGS[spec.precision]
    rounder = _Rounder(source, tell)

    def attempt(setting: Setting) -> Tried:
        shutil.rmtree(out, ignore_errors=True)
        rounded = rounder.round(setting)
        tell(0.8, f"building block {setting.block_size}, head int{setting.head_bits}")
        options = BuildOptions(
            PROVIDERS[spec.target], spec.precision, setting.block_size, setting.head_bits
        )
        build(source.model_dir, out, options)
        put_weights(out, rounded)
        near = likeness(reference, OnnxScorer(out, EngineOptions(num_threads=spec.num_threads)))
        size = sum(path.stat().st_size for path in out.iterdir())
        return Tried(setting, near, size)

    for setting in settings:
        tried.append(attempt(setting))
        if tried[-1].near.kl_divergence <= MAX_KL_DIVERGENCE:
            return tried
    best = min(tried, key=lambda item: item.near.kl_divergence)
    if best is not tried[-1]:
        tried.append(attempt(best.setting))
    return tried


class _Rounder:
    """Rounds a model's weights; the layers of one grid are rounded once for all heads.

    Args:
        source: The model.
        tell: Told how far it is.
    """

    def __init__(self, source: Source, tell: Tell) -> None:
        self._source = source
        self._tell = tell
        self._original = {name: value.clone() for name, value in source.model.state_dict().items()}
        self._grid: Grid | None = None
        self._layers: dict[str, Rounded] = {}

    def round(self, setting: Setting) -> dict[str, Rounded]:
        """Return all weights rounded, by their modules' names."""
        grid = Grid(setting.body_bits, setting.block_size)
        model = self._source.model
        if self._grid != grid:
            model.load_state_dict(self._original)
            self._layers = round_layers(
                model,
                list(self._batches()),
                grid,
                lambda share: self._tell(0.75 * share, f"rounding, block {grid.block_size}"),
            )
            self._grid = grid
        head_grid = Grid(setting.head_bits, setting.block_size)
        return {**self._layers, "lm_head": self._head(head_grid)}

    def _batches(self) -> Iterator[Tensor]:
        return iter(self._source.rows.split(_BATCH_ROWS))

    @torch.no_grad()
    def _head(self, grid: Grid) -> Rounded:
        """Round the head by what the rounded layers give it."""
        head = self._source.model.get_output_embeddings()
        weight = head.weight.data
        if grid.bits == 8:
            return round_weight(weight, None, grid)
        total = torch.zeros(weight.shape[1], weight.shape[1])

        def add(_: Any, args: tuple[Tensor, ...]) -> None:
            rows = args[0].reshape(-1, weight.shape[1]).float()
            total.addmm_(rows.T, rows)

        body = self._source.model.get_submodule("model")
        for batch in self._batches():
            add(None, (body(batch, use_cache=False).last_hidden_state,))
        return round_weight(weight, total, grid)
