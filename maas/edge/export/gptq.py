"""Rounds weights to four or eight bits so that what the layers compute changes least.

Source: "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers"
(Frantar et al., 2023, algorithm 1), with groups of fixed scales. A column of a weight is rounded,
and the columns not rounded yet take over its error, as far as the inputs seen in calibration
correlate. Blocks are rounded one after the other, each on what the rounded ones before it give.

The grid is onnxruntime's symmetric MatMulNBits: ``w = (q - zero) * scale``, one scale for each
block of a row, ``zero`` 8 of 4 bits and 128 of 8. A scale may be negative: the larger side of a
block gets the one value more that the grid has below zero.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from maas.edge.export.blocks import adder, first_inputs, linear_groups, linear_of, run_block

# Part of the mean of a Hessian's diagonal that is added to it, so that it can be inverted.
_DAMPING = 0.01
_SHRINKS = tuple(1.0 - 0.04 * step for step in range(9))
# Errors reach beyond this many columns in one product, not one by one. A multiple of any block.
_SPAN = 128
# Weights that are rounded to the nearest in one go.
_MAX_NEAREST = 1 << 24
Tell = Callable[[float], None]


@dataclass(frozen=True)
class Grid:
    """Where weights may lie.

    Attributes:
        bits: 4 or 8.
        block_size: Weights of a row that share a scale.
    """

    bits: int
    block_size: int

    @property
    def zero(self) -> int:
        """The value that stands for 0."""
        return 1 << (self.bits - 1)


@dataclass(frozen=True)
class Rounded:
    """A weight on its grid.

    Attributes:
        values: Shape (outputs, inputs), uint8, not packed.
        scales: Shape (outputs, blocks), float32.
    """

    grid: Grid
    values: Tensor
    scales: Tensor

    def weight(self) -> Tensor:
        """Return the weight it stands for, float32."""
        scales = self.scales.repeat_interleave(self.grid.block_size, 1)
        return (self.values.float() - self.grid.zero) * scales[:, : self.values.shape[1]]


def find_scales(block: Tensor, grid: Grid, importance: Tensor | None = None) -> Tensor:
    """Return the scales that lose least, one for each row of a block.

    Args:
        block: Shape (outputs, block size).
        grid: Where its weights will lie.
        importance: Of each column's error, shape (block size,).
    """
    peak = block.gather(1, block.abs().argmax(1, keepdim=True)).squeeze(1)
    # The largest weight lies on the outermost value, which is below zero.
    widest = torch.where(peak == 0, torch.full_like(peak, 1e-8), peak) / -grid.zero
    best, least = widest, torch.full_like(widest, float("inf"))
    for shrink in _SHRINKS:
        scales = widest * shrink
        error = (_to_grid(block, scales, grid) - block).square()
        lost = (error if importance is None else error * importance).sum(1)
        best = torch.where(lost < least, scales, best)
        least = torch.minimum(lost, least)
    return best


def round_weight(weight: Tensor, hessian: Tensor | None, grid: Grid) -> Rounded:
    """Round one weight.

    Args:
        weight: Shape (outputs, inputs).
        hessian: Sum of the outer products of its inputs, shape (inputs, inputs); none rounds each
            weight to the nearest value.
        grid: Where.
    """
    if hessian is None:
        return round_nearest(weight, grid)
    scales = _group_scales(weight, hessian.diagonal(), grid)
    # What counts most is rounded first, while there are many columns left to take over its error.
    order = hessian.diagonal().argsort(descending=True)
    by_column = scales.repeat_interleave(grid.block_size, 1)[:, order].T.contiguous()
    # Columns are gone through one by one: each lies in one piece.
    rest = weight.float()[:, order].T.contiguous()
    inverse = _inverse_root(hessian[order][:, order])
    values = torch.zeros(rest.shape, dtype=torch.uint8)
    num_inputs = len(rest)
    for start in range(0, num_inputs, _SPAN):
        end = min(start + _SPAN, num_inputs)
        errors = torch.zeros(end - start, len(weight))
        for column in range(start, end):
            placed = _place(rest[column], by_column[column], grid)
            values[order[column]] = placed.to(torch.uint8)
            error = rest[column] - (placed - grid.zero) * by_column[column]
            error /= inverse[column, column]
            rest[column + 1 : end].addr_(inverse[column, column + 1 : end], error, alpha=-1)
            errors[column - start] = error
        rest[end:].addmm_(inverse[start:end, end:].T, errors, alpha=-1)
    return Rounded(grid, values.T.contiguous(), scales)


def _group_scales(weight: Tensor, importance: Tensor, grid: Grid) -> Tensor:
    """Return the scales of all blocks, shape (outputs, blocks)."""
    starts = range(0, weight.shape[1], grid.block_size)
    blocks = [slice(start, start + grid.block_size) for start in starts]
    return torch.stack(
        [find_scales(weight[:, block].float(), grid, importance[block]) for block in blocks], 1
    )


def round_nearest(weight: Tensor, grid: Grid) -> Rounded:
    """Round each weight, shape (outputs, inputs), to the nearest value; needs no calibration."""
    num_inputs = weight.shape[1]
    num_blocks = -(-num_inputs // grid.block_size)
    values: list[Tensor] = []
    scales: list[Tensor] = []
    # In parts: several copies in float32 are in memory.
    for part in weight.split(max(1, _MAX_NEAREST // num_inputs)):
        filled = nn.functional.pad(part.float(), (0, num_blocks * grid.block_size - num_inputs))
        blocks = filled.view(-1, grid.block_size)
        found = find_scales(blocks, grid)
        placed = _place(blocks, found[:, None], grid).to(torch.uint8)
        values.append(placed.view(len(part), -1)[:, :num_inputs])
        scales.append(found.view(len(part), num_blocks))
    return Rounded(grid, torch.cat(values), torch.cat(scales))


def round_together(weights: Sequence[Tensor], hessian: Tensor, grid: Grid) -> list[Rounded]:
    """Round weights that have the same inputs; as ``round_weight`` does each, in one go."""
    joined = round_weight(torch.cat(list(weights)), hessian, grid)
    sizes = [len(weight) for weight in weights]
    parts = zip(joined.values.split(sizes), joined.scales.split(sizes), strict=True)
    return [Rounded(grid, values, scales) for values, scales in parts]


def _place(weights: Tensor, scales: Tensor, grid: Grid) -> Tensor:
    return torch.clamp(torch.round(weights / scales) + grid.zero, 0, 2 * grid.zero - 1)


def _to_grid(block: Tensor, scales: Tensor, grid: Grid) -> Tensor:
    return (_place(block, scales[:, None], grid) - grid.zero) * scales[:, None]


def _inverse_root(hessian: Tensor) -> Tensor:
    """Return the upper Cholesky factor of the damped inverse."""
    damped = hessian.double()
    diagonal = damped.diagonal()
    diagonal[diagonal == 0] = 1.0
    diagonal += _DAMPING * diagonal.mean()
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    return torch.linalg.cholesky(inverse, upper=True).float()


@dataclass(frozen=True)
class RoundedLayers:
    """What a model's blocks became.

    Attributes:
        layers: Each linear layer, by its name in the model.
        states: What the last block gives on each batch of the calibration.
    """

    layers: dict[str, Rounded]
    states: list[Tensor]


@torch.no_grad()
def round_layers(
    model: nn.Module, batches: Sequence[Tensor], grid: Grid, tell: Tell
) -> RoundedLayers:
    """Round the linear layers of a causal language model's blocks, in place.

    Args:
        model: From transformers, with its blocks in ``model.model.layers``.
        batches: Token ids for calibration, each of shape (rows, length).
        grid: Where.
        tell: Told the share that is done, 0 to 1.
    """
    body: Any = model.get_submodule("model")
    blocks = body.layers
    states, calls = first_inputs(model, blocks[0], batches)
    rounded: dict[str, Rounded] = {}
    for index, block in enumerate(blocks):
        groups = linear_groups(block, states[0], calls[0])
        for group, hessian in zip(groups, _hessians(block, groups, states, calls), strict=True):
            linears = [linear_of(block, name) for name in group]
            results = round_together([linear.weight.data for linear in linears], hessian, grid)
            for name, linear, result in zip(group, linears, results, strict=True):
                linear.weight.data = result.weight().to(linear.weight.dtype)
                rounded[f"model.layers.{index}.{name}"] = result
        states = [run_block(block, state, call) for state, call in zip(states, calls, strict=True)]
        tell((index + 1) / len(blocks))
    return RoundedLayers(rounded, states)


def _hessians(
    block: nn.Module,
    groups: Sequence[Sequence[str]],
    states: Sequence[Tensor],
    calls: Sequence[dict[str, Any]],
) -> list[Tensor]:
    """Return the sum of the outer products of each group's inputs, in one pass for all."""
    linears = [linear_of(block, group[0]) for group in groups]
    totals = [torch.zeros(linear.in_features, linear.in_features) for linear in linears]
    handles = [
        linear.register_forward_pre_hook(adder(total))
        for linear, total in zip(linears, totals, strict=True)
    ]
    try:
        for state, call in zip(states, calls, strict=True):
            run_block(block, state, call)
    finally:
        for handle in handles:
            handle.remove()
    return totals
