"""Rounds weights to four or eight bits so that what the layers compute changes least.

Source: "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers"
(Frantar et al., 2023, algorithm 1), with groups of fixed scales. A column of a weight is rounded,
and the columns not rounded yet take over its error, as far as the inputs seen in calibration
correlate. Layers are rounded one after the other, each on what the rounded ones before it give.

The grid is onnxruntime's symmetric MatMulNBits: ``w = (q - zero) * scale``, one scale for each
block of a row, ``zero`` 8 of 4 bits and 128 of 8. A scale may be negative: the larger side of a
block gets the one value more that the grid has below zero.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

# Part of the mean of a Hessian's diagonal that is added to it, so that it can be inverted.
_DAMPING = 0.01
_SHRINKS = tuple(1.0 - 0.04 * step for step in range(9))
# Errors reach beyond this many columns in one product, not one by one. A multiple of any block.
_SPAN = 256
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
    num_inputs = weight.shape[1]
    rest = weight.float().clone()
    values = torch.zeros(weight.shape, dtype=torch.uint8)
    scales = torch.zeros(weight.shape[0], -(-num_inputs // grid.block_size))
    diagonal = torch.ones(num_inputs) if hessian is None else hessian.diagonal().clone()
    inverse = None if hessian is None else _inverse_root(hessian)
    for start in range(0, num_inputs, _SPAN):
        end = min(start + _SPAN, num_inputs)
        errors = torch.zeros(weight.shape[0], end - start)
        for column in range(start, end):
            block = column // grid.block_size
            if column % grid.block_size == 0:
                stop = min(column + grid.block_size, num_inputs)
                scales[:, block] = find_scales(rest[:, column:stop], grid, diagonal[column:stop])
            scale = scales[:, block]
            placed = _place(rest[:, column], scale, grid)
            values[:, column] = placed.to(torch.uint8)
            if inverse is None:
                continue
            error = (rest[:, column] - (placed - grid.zero) * scale) / inverse[column, column]
            rest[:, column + 1 : end] -= torch.outer(error, inverse[column, column + 1 : end])
            errors[:, column - start] = error
        if inverse is not None:
            rest[:, end:] -= errors @ inverse[start:end, end:]
    return Rounded(grid, values, scales)


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


@torch.no_grad()
def round_layers(
    model: nn.Module, batches: Sequence[Tensor], grid: Grid, tell: Tell
) -> dict[str, Rounded]:
    """Round the linear layers of a causal language model's blocks, in place.

    Args:
        model: From transformers, with its blocks in ``model.model.layers``.
        batches: Token ids for calibration, each of shape (rows, length).
        grid: Where.
        tell: Told the share that is done, 0 to 1.

    Returns:
        What each linear layer became, by its name in the model.
    """
    body: Any = model.get_submodule("model")
    blocks = body.layers
    states, calls = _first_inputs(model, blocks[0], batches)
    rounded: dict[str, Rounded] = {}
    for index, block in enumerate(blocks):
        for group in _groups(block, states[0], calls[0]):
            hessian = _hessian(block, group[0], states, calls)
            for name in group:
                linear = _linear(block, name)
                result = round_weight(linear.weight.data, hessian, grid)
                linear.weight.data = result.weight().to(linear.weight.dtype)
                rounded[f"model.layers.{index}.{name}"] = result
        states = [_run(block, state, call) for state, call in zip(states, calls, strict=True)]
        tell((index + 1) / len(blocks))
    return rounded


def _linear(block: nn.Module, name: str) -> nn.Linear:
    return cast("nn.Linear", block.get_submodule(name))


class _Caught(Exception):
    """No error: ends a forward pass early."""


def _first_inputs(
    model: nn.Module, first: nn.Module, batches: Sequence[Tensor]
) -> tuple[list[Tensor], list[dict[str, Any]]]:
    """Return what the first block gets for each batch: hidden states, and the other arguments."""
    states: list[Tensor] = []
    calls: list[dict[str, Any]] = []

    def catch(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        states.append(args[0] if args else kwargs["hidden_states"])
        calls.append({name: value for name, value in kwargs.items() if name != "hidden_states"})
        raise _Caught

    handle = first.register_forward_pre_hook(catch, with_kwargs=True)
    try:
        for batch in batches:
            try:
                model(batch, use_cache=False)
            except _Caught:
                continue
    finally:
        handle.remove()
    return states, calls


def _run(block: nn.Module, state: Tensor, call: dict[str, Any]) -> Tensor:
    out = block(state, **call)
    return out[0] if isinstance(out, tuple) else out


def _groups(block: nn.Module, state: Tensor, call: dict[str, Any]) -> Iterator[list[str]]:
    """Yield the linear layers that get the same input together, in the order they run."""
    seen: dict[int, list[str]] = {}
    kept: list[Tensor] = []
    handles: list[Any] = []
    for name, module in block.named_modules():
        if isinstance(module, nn.Linear):

            def note(_: nn.Module, args: tuple[Tensor, ...], name: str = name) -> None:
                # Kept alive: an address is used again when a tensor goes.
                kept.append(args[0])
                seen.setdefault(id(args[0]), []).append(name)

            handles.append(module.register_forward_pre_hook(note))
    _run(block, state[:1], _first_row(call))
    for handle in handles:
        handle.remove()
    yield from seen.values()


def _first_row(call: dict[str, Any]) -> dict[str, Any]:
    def cut(value: Any) -> Any:
        if isinstance(value, Tensor) and value.dim() and value.shape[0] > 1:
            return value[:1]
        if isinstance(value, tuple):
            return tuple(cut(item) for item in value)
        return value

    return {name: value if name == "cache_position" else cut(value) for name, value in call.items()}


def _hessian(
    block: nn.Module, name: str, states: Sequence[Tensor], calls: Sequence[dict[str, Any]]
) -> Tensor:
    """Return the sum of the outer products of a linear layer's inputs."""
    linear = _linear(block, name)
    size = linear.in_features
    total = torch.zeros(size, size)

    def add(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        rows = args[0].reshape(-1, size).float()
        total.addmm_(rows.T, rows)

    handle = linear.register_forward_pre_hook(add)
    try:
        for state, call in zip(states, calls, strict=True):
            _run(block, state, call)
    finally:
        handle.remove()
    return total
