"""Searches the settings of a quantised graph: the fastest and smallest that keeps enough."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from maas.core.errors import BundleRefused
from maas.edge.export.blocks import adder
from maas.edge.export.build import DATA, GRAPH, PROVIDERS, BuildOptions, build, put_weights
from maas.edge.export.gptq import Grid, Rounded, round_layers, round_nearest, round_weight
from maas.edge.export.sizes import Sizes
from maas.edge.export.spec import ExportSpec
from maas.edge.quality.measure import Likeness, Reference, likeness
from maas.edge.quality.scorers import OnnxScorer, Scorer
from maas.edge.runtime.engine.options import EngineOptions

_BATCH_ROWS = 16
# A later setting takes an earlier one's place when it lies at most at this share of its distance.
_WORTH = 0.9
Algorithm = Literal["gptq", "rtn", "k_quant"]
Tell = Callable[[float, str], None]


@dataclass(frozen=True)
class Setting:
    """One way to quantise.

    Attributes:
        block_size: Weights that share a scale.
        body_bits: Of the layers.
        head_bits: Of the head and the embedding.
        algorithm: ``gptq`` needs calibration; ``rtn`` takes the nearest value on scales that were
            searched; ``k_quant`` is the builder's, with a zero point for each block.
        accuracy_level: 4 computes products in int8, 1 in float32: slower, and nearer.
    """

    block_size: int
    body_bits: int
    head_bits: int
    algorithm: Algorithm = "gptq"
    accuracy_level: int = 4

    def plain(self) -> dict[str, Any]:
        """Return it as the receipt has it."""
        return {
            "block_size": self.block_size,
            "body_bits": self.body_bits,
            "head_bits": self.head_bits,
            "algorithm": self.algorithm,
            "accuracy_level": self.accuracy_level,
        }


@dataclass(frozen=True)
class Tried:
    """What came of a setting.

    Attributes:
        near: How near it is; none where it was not built.
        size_bytes: Of the graph and its weights; about, where it was not built.
        why: Why it was taken, or not.
        score_percent: Of the original's; none where it was too far away to be asked.
    """

    setting: Setting
    near: Likeness | None
    size_bytes: int
    is_taken: bool
    why: str
    score_percent: float | None = None

    def plain(self) -> dict[str, Any]:
        """Return it as the receipt has it."""
        near = self.near
        measured = (
            {}
            if near is None
            else {
                "kl_divergence": near.kl_divergence,
                "greedy_agreement": near.greedy_agreement,
                "perplexity_ratio": near.perplexity_ratio,
            }
        )
        if self.score_percent is not None:
            measured["score_percent"] = self.score_percent
        rest = {"size_bytes": self.size_bytes, "is_taken": self.is_taken, "why": self.why}
        return self.setting.plain() | measured | rest


# Fastest first. Bits of the head cost time in each step, smaller blocks a little more memory, and
# products in float32 most by far (a twentieth of the speed): they are the last resort.
SETTINGS = {
    "int4": (
        Setting(64, 4, 4),
        Setting(64, 4, 8),
        Setting(32, 4, 8),
        Setting(32, 4, 8, "k_quant"),
        Setting(32, 4, 8, "rtn"),
        Setting(32, 4, 8, accuracy_level=1),
    ),
    "int8": (
        Setting(64, 8, 8, "rtn"),
        Setting(64, 8, 8),
        Setting(32, 8, 8),
        Setting(32, 8, 8, accuracy_level=1),
    ),
}


@dataclass(frozen=True)
class Source:
    """What is quantised.

    Attributes:
        model_dir: Its files.
        model: Loaded, bfloat16; its weights are changed.
        rows: Gives calibration text, shape (rows, length); asked when a setting needs it.
        is_low_rank: Whether layers of it were decomposed: the builder cannot round those.
        max_size_bytes: Of the graph and its weights.
        lost: Nats a token that the model lies from the reference as it is. Where the caller named
            no budget, quantising may add as much as it may to a model that was not shrunk.
        score: Tells how much of the original's task score a graph keeps, in percent; none: no goal
            is looked at.
    """

    model_dir: Path
    model: Any
    rows: Callable[[], Tensor]
    is_low_rank: bool = False
    max_size_bytes: int | None = None
    lost: float = 0.0
    score: Callable[[Scorer], float] | None = None


def search(
    source: Source, reference: Reference, out: Path, *, spec: ExportSpec, tell: Tell
) -> list[Tried]:
    """Try settings until one lies near enough and reaches the goal; what was taken is in ``out``.

    Args:
        source: The model.
        reference: What the original does.
        out: A new folder for the graph.
        spec: Says precision and target, the budget and how many may be tried.
        tell: Told the share done, and what is being done.

    Returns:
        What was tried, in order. Where none reaches the goal the one near enough that keeps most
        was taken; where none is near enough, the nearest for its speed.

    Raises:
        BundleRefused: None is as small as is asked for, or as near as the caller said it must be.
    """
    settings = [
        setting
        for setting in SETTINGS[spec.precision]
        if not (source.is_low_rank and setting.algorithm == "k_quant")
    ]
    attempt = _Attempts(source, reference, out, spec, tell)
    for setting in settings:
        if attempt.num_built == spec.quality.max_attempts:
            break
        if attempt.is_enough(setting):
            break
    return attempt.done()


class _Attempts:
    """Builds settings and keeps the nearest.

    Args:
        source: The model.
        reference: What the original does.
        out: Where the graph is to be.
        spec: The export.
        tell: Told how far it is.
    """

    def __init__(
        self, source: Source, reference: Reference, out: Path, spec: ExportSpec, tell: Tell
    ) -> None:
        self.num_built = 0
        self._source, self._reference, self._out = source, reference, out
        self._spec, self._tell = spec, tell
        self._kept = out.with_name(f"{out.name}.kept")
        self._rounder = _Rounder(source, tell)
        self._sizes = Sizes.of(source.model)
        is_named = spec.quality.max_kl_divergence is not None
        self._budget = spec.quality.budget + (0.0 if is_named else source.lost)
        self._tried: list[Tried] = []
        self._best: int | None = None

    def is_enough(self, setting: Setting) -> bool:
        """Try one; whether it keeps enough."""
        limit, budget = self._source.max_size_bytes, self._budget
        about = self._sizes.graph_bytes(setting.body_bits, setting.head_bits, setting.block_size)
        if limit is not None and about > limit:
            self._note(setting, None, about, f"about {about} bytes, over {limit}")
            return False
        self.num_built += 1
        graph = self._build(setting)
        near = likeness(self._reference, graph)
        size = sum((self._out / name).stat().st_size for name in (GRAPH, DATA))
        if limit is not None and size > limit:
            self._note(setting, near, size, f"{size} bytes, over {limit}")
            return False
        is_near = near.kl_divergence <= budget
        compared = f"{near.kl_divergence:.3f} nats, {'within' if is_near else 'over'} {budget:.3g}"
        score = self._source.score(graph) if is_near and self._source.score else None
        goal = self._spec.quality.goal_percent
        is_below = score is not None and score < goal
        if is_below:
            compared += f", {score:.1f} % of the score, under the goal of {goal:.4g}"
        self._note(setting, near, size, compared, score)
        if self._is_best(self._tried[-1]):
            self._best = len(self._tried) - 1
            shutil.rmtree(self._kept, ignore_errors=True)
            self._out.rename(self._kept)
        return is_near and not is_below

    def _is_best(self, made: Tried) -> bool:
        """Say whether a setting just built takes the place of the one kept: it is slower."""
        best = None if self._best is None else self._tried[self._best]
        if best is None or best.near is None or made.near is None:
            return True
        is_near = made.near.kl_divergence <= self._budget
        was_near = best.near.kl_divergence <= self._budget
        if is_near != was_near:
            return is_near
        if made.score_percent is not None and best.score_percent is not None:
            return made.score_percent > best.score_percent
        return made.near.kl_divergence < _WORTH * best.near.kl_divergence

    def done(self) -> list[Tried]:
        """Put the nearest where it is to be, and return all."""
        demand = self._spec.quality
        if self._best is None:
            least = min((item.size_bytes for item in self._tried), default=0)
            raise BundleRefused(
                f"the smallest setting takes {least} bytes and "
                f"{self._source.max_size_bytes} are left for it: shrink it further",
                param="target_size_bytes",
            )
        best = self._tried[self._best]
        near = best.near
        if near is None or (
            near.kl_divergence > self._budget
            and demand.max_kl_divergence is not None
            and not demand.force
        ):
            raise BundleRefused(
                f"no setting tried lies within {self._budget:.3g} nats a token of the original: "
                f"{'; '.join(item.why for item in self._tried)}",
                param="max_kl_divergence",
            )
        shutil.rmtree(self._out, ignore_errors=True)
        self._kept.rename(self._out)
        is_over = near.kl_divergence > self._budget
        score, goal = best.score_percent, demand.goal_percent
        last = (
            "the most that was kept" if score is not None and score < goal else "the first that is"
        )
        why = f"{best.why}; {'the nearest for its speed' if is_over else last}"
        self._tried[self._best] = replace(best, is_taken=True, why=why)
        return self._tried

    def _note(
        self,
        setting: Setting,
        near: Likeness | None,
        size: int,
        why: str,
        score: float | None = None,
    ) -> None:
        self._tried.append(Tried(setting, near, size, False, why, score))

    def _build(self, setting: Setting) -> Scorer:
        shutil.rmtree(self._out, ignore_errors=True)
        rounded = {} if setting.algorithm == "k_quant" else self._rounder.round(setting)
        self._tell(0.8, f"building block {setting.block_size}, head int{setting.head_bits}")
        options = BuildOptions(
            PROVIDERS[self._spec.target],
            self._spec.precision,
            setting.block_size,
            setting.head_bits,
            setting.accuracy_level,
            "k_quant" if setting.algorithm == "k_quant" else "rtn",
        )
        build(self._source.model_dir, self._out, options)
        if rounded:
            put_weights(self._out, rounded)
        threads = EngineOptions(num_threads=self._spec.num_threads)
        return OnnxScorer(self._out, threads)


class _Rounder:
    """Rounds a model's weights; the layers of one grid are rounded once for all heads.

    Args:
        source: The model.
        tell: Told how far it is.
    """

    def __init__(self, source: Source, tell: Tell) -> None:
        self._source = source
        self._tell = tell
        self._original: dict[str, Tensor] | None = None
        self._key: tuple[Grid, Algorithm] | None = None
        self._layers: dict[str, Rounded] = {}
        self._states: Sequence[Tensor] = ()

    def round(self, setting: Setting) -> dict[str, Rounded]:
        """Return all weights rounded, by their modules' names."""
        grid = Grid(setting.body_bits, setting.block_size)
        if self._key != (grid, setting.algorithm):
            self._round_layers(grid, setting.algorithm)
            self._key = grid, setting.algorithm
        head_grid = Grid(setting.head_bits, setting.block_size)
        return {**self._layers, "lm_head": self._head(head_grid)}

    def _round_layers(self, grid: Grid, algorithm: Algorithm) -> None:
        model, told = self._source.model, f"rounding, block {grid.block_size}"
        if self._original is not None:
            model.load_state_dict(self._original)
        if algorithm == "rtn":
            self._tell(0.0, told)
            self._states = ()
            self._layers = {
                name: round_nearest(module.weight.data, grid)
                for name, module in model.named_modules()
                if isinstance(module, nn.Linear) and name != "lm_head"
            }
            return
        if self._original is None:
            self._original = {name: value.clone() for name, value in model.state_dict().items()}
        batches = self._source.rows().split(_BATCH_ROWS)
        made = round_layers(model, batches, grid, lambda share: self._tell(0.75 * share, told))
        self._layers, self._states = made.layers, made.states

    @torch.no_grad()
    def _head(self, grid: Grid) -> Rounded:
        """Round the head by what the rounded layers give it."""
        weight = self._source.model.get_output_embeddings().weight.data
        if grid.bits == 8 or not self._states:
            return round_nearest(weight, grid)
        total = torch.zeros(weight.shape[1], weight.shape[1])
        add, norm = adder(total), self._source.model.get_submodule("model.norm")
        for state in self._states:
            add(norm, (norm(state),))
        return round_weight(weight, total, grid)
