"""Goes through a causal language model block by block, with what each block gets in calibration."""

from collections.abc import Callable, Sequence
from typing import Any, cast

from torch import Tensor, nn


def linear_of(block: nn.Module, name: str) -> nn.Linear:
    """Return a block's linear layer."""
    return cast("nn.Linear", block.get_submodule(name))


class _Caught(Exception):
    """No error: ends a forward pass early."""


def first_inputs(
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


def run_block(block: nn.Module, state: Tensor, call: dict[str, Any]) -> Tensor:
    """Return what a block makes of hidden states."""
    out = block(state, **call)
    return out[0] if isinstance(out, tuple) else out


def linear_groups(block: nn.Module, state: Tensor, call: dict[str, Any]) -> list[list[str]]:
    """Return the linear layers that get the same input together, in the order they run."""
    seen: dict[int, list[str]] = {}
    kept: list[Tensor] = []
    handles: list[Any] = []
    for name, module in block.named_modules():
        if isinstance(module, nn.Linear):

            def note(_: nn.Module, args: tuple[Tensor, ...], name: str = name) -> None:
                # Kept alive: an address is used again when a tensor goes.
                kept.append(args[0])
                group = seen.setdefault(id(args[0]), [])
                if name not in group:
                    group.append(name)

            handles.append(module.register_forward_pre_hook(note))
    run_block(block, state[:1], _first_row(call))
    for handle in handles:
        handle.remove()
    return list(seen.values())


def _first_row(call: dict[str, Any]) -> dict[str, Any]:
    def cut(value: Any) -> Any:
        if isinstance(value, Tensor) and value.dim() and value.shape[0] > 1:
            return value[:1]
        if isinstance(value, tuple):
            return tuple(cut(item) for item in value)
        return value

    return {name: value if name == "cache_position" else cut(value) for name, value in call.items()}


def adder(total: Tensor) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    """Return a hook before a layer that adds its inputs' outer products to a sum."""

    def add(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        add_outer(total, args[0])

    return add


def add_outer(total: Tensor, inputs: Tensor) -> None:
    """Add the outer products of inputs to a sum, shape (size, size), in place."""
    rows = inputs.reshape(-1, total.shape[0]).float()
    total.addmm_(rows.T, rows)
