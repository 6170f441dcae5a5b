"""LoRA adapters applied to a batch, the tokens of one adapter at a time.

A linear layer with an adapter computes ``x W^T + x A^T B^T`` (Hu et al. 2021). In a batch each
token has an adapter of its own, or none; tokens are put in order by adapter, so that each
adapter's matrices are read once (Chen et al. 2023, Punica; Sheng et al. 2023, S-LoRA).

Imported inside an engine's process only.
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Groups:
    """Which tokens of a batch belong to which adapter.

    Attributes:
        order: Positions of the tokens that have an adapter, those of one together; none where
            that is all of them, in the order they are in.
        slots: Slot of each adapter.
        bounds: Where each adapter's tokens begin, and the end.
        num_each: Tokens of each adapter where all have as many and lie in the first slots, in
            order; 0 otherwise.
    """

    order: torch.Tensor | None
    slots: tuple[int, ...]
    bounds: tuple[int, ...]
    num_each: int


def group(indices: torch.Tensor) -> Groups | None:
    """Group a batch's tokens by adapter; none where no token has one.

    Args:
        indices: Slot of each token's adapter; -1 is none.
    """
    values, order = torch.sort(indices, stable=True)
    found, counts = torch.unique_consecutive(values, return_counts=True)
    slots, sizes = found.tolist(), counts.tolist()
    if slots and slots[0] < 0:
        order = order[sizes[0] :]
        slots, sizes = slots[1:], sizes[1:]
    if not slots:
        return None
    bounds = [0]
    for size in sizes:
        bounds.append(bounds[-1] + size)
    is_whole = len(order) == len(indices) and bool((order[1:] > order[:-1]).all())
    is_even = len(set(sizes)) == 1 and slots == list(range(len(slots)))
    return Groups(
        order=None if is_whole else order,
        slots=tuple(slots),
        bounds=tuple(bounds),
        num_each=sizes[0] if is_even else 0,
    )


def apply(
    y: torch.Tensor, x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, groups: Groups
) -> None:
    """Add each adapter's ``x A^T B^T`` to its tokens' rows of ``y``.

    Args:
        y: ``[num_tokens, out]``, changed in place.
        x: ``[num_grouped_tokens, in]``, in the order of the groups.
        a: ``[num_slots, r, in]``.
        b: ``[num_slots, out, r]``.
        groups: Of the tokens.
    """
    if groups.num_each:
        num = len(groups.slots)
        shrunk = torch.bmm(x.view(num, groups.num_each, -1), a[:num].transpose(1, 2))
        delta = torch.bmm(shrunk, b[:num].transpose(1, 2)).view(x.shape[0], -1)
        if groups.order is None:
            y += delta
        else:
            y.index_add_(0, groups.order, delta)
        return
    for slot, start, end in zip(groups.slots, groups.bounds, groups.bounds[1:], strict=False):
        shrunk = x[start:end] @ a[slot].T
        if groups.order is None:
            y[start:end].addmm_(shrunk, b[slot].T)
        else:
            y.index_add_(0, groups.order[start:end], shrunk @ b[slot].T)


def apply_slices(
    y: torch.Tensor,
    x: torch.Tensor,
    stacked: tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]],
    widths: tuple[int, ...],
    groups: Groups,
) -> None:
    """Add what adapters change of a layer that is several in one, as query, key and value are.

    Args:
        y: The layer's output ``[num_tokens, sum(widths)]``, changed in place.
        x: Its input ``[num_tokens, in]``.
        stacked: For each slice A ``[num_slots, 1, r, in]`` and B ``[num_slots, 1, width, r]``.
        widths: Of the slices.
        groups: Of the tokens.
    """
    if groups.order is not None:
        x = x.index_select(0, groups.order)
    start = 0
    for a, b, width in zip(*stacked, widths, strict=True):
        part = y[:, start : start + width]
        apply(part, x, a[:, 0].to(x.dtype), b[:, 0].to(x.dtype), groups)
        start += width
