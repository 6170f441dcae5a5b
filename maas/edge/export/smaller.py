"""Shrinks the model of an export to its target before it is quantised."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from maas.core.errors import ConfigError
from maas.edge.export.finish import BESIDE, copy_beside
from maas.edge.export.quantise import SETTINGS
from maas.edge.export.sizes import Sizes, beside_bytes
from maas.edge.export.spec import ExportSpec, Progress, ShrinkDemand
from maas.edge.shrink.low_rank import decompose, whole_state
from maas.edge.shrink.prune import count_parameters, prune
from maas.edge.shrink.recover import recover

_BATCH_ROWS = 16
Report = Callable[[Progress], None]


@dataclass(frozen=True)
class Shrunk:
    """What came of it.

    Attributes:
        model_dir: The smaller model's files, of the ordinary architecture.
        is_low_rank: Whether layers were decomposed.
        receipt: What was done.
    """

    model_dir: Path
    is_low_rank: bool
    receipt: dict[str, Any]


def graph_limit(spec: ExportSpec, model_dir: Path) -> int | None:
    """Return what graph and weights may take, where the bundle's size is limited."""
    if spec.shrink is None or spec.shrink.target_size_bytes is None:
        return None
    return spec.shrink.target_size_bytes - beside_bytes(model_dir, BESIDE)


def shrink(
    demand: ShrinkDemand,
    model: Any,
    model_dir: Path,
    rows: Tensor,
    *,
    spec: ExportSpec,
    report: Report,
) -> Shrunk:
    """Shrink a model and bring it nearer to what it was.

    Args:
        demand: How far, and how.
        model: Loaded; changed in place.
        model_dir: Its files.
        rows: Text to judge by and to tune on.
        spec: The export.
        report: Told how far it is.

    Raises:
        ConfigError: The target is smaller than can be reached.
    """
    target = _target(demand, model, model_dir, spec)
    teacher = copy.deepcopy(model) if demand.recover_s else None
    batches, done = list(rows.split(_BATCH_ROWS)), dict[str, Any]()
    done |= {"method": demand.method, "target_parameters": target}
    if demand.method != "low_rank":
        report(Progress(phase="pruning", percent=30, message="taking out what does least"))
        before = count_parameters(model)
        half = target + max(0, before - target) // 2
        done |= prune(model, batches, half if demand.method == "both" else target).plain()
    if demand.method != "prune":

        def tell(share: float) -> None:
            message = "finding lower ranks"
            report(Progress(phase="decomposing", percent=30 + 2 * share, message=message))

        done["low_rank"] = decompose(model, batches, target, tell).plain()
    if teacher is not None:

        def tell_tuned(share: float) -> None:
            message = "tuning what is left"
            report(Progress(phase="recovering", percent=32 + 8 * share, message=message))

        seconds = demand.recover_s
        done["recovery"] = recover(
            model, teacher, rows, max_seconds=seconds, tell=tell_tuned
        ).plain()
    folder = spec.work_dir / "shrunk"
    model.save_pretrained(folder, state_dict=whole_state(model))
    copy_beside(model_dir, folder)
    return Shrunk(folder, demand.method != "prune", done)


def _target(demand: ShrinkDemand, model: Any, model_dir: Path, spec: ExportSpec) -> int:
    """Return how many parameters may be left, by the setting that is tried first."""
    if demand.target_parameters is not None:
        return demand.target_parameters
    limit = graph_limit(spec, model_dir) or 0
    bits, head_bits, block_size = 16, 16, 1 << 30
    if spec.precision in SETTINGS:
        first = SETTINGS[spec.precision][0]
        bits, head_bits, block_size = first.body_bits, first.head_bits, first.block_size
    sizes = Sizes.of(model)
    target = sizes.parameters_within(limit, bits, head_bits, block_size)
    if target <= sizes.num_head + sizes.num_embedding:
        raise ConfigError(
            f"{demand.target_size_bytes} bytes: tokenizer, embedding and head alone take more",
            param="target_size_bytes",
        )
    return target
