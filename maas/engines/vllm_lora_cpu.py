"""How vLLM applies LoRA adapters on processors, by tokens of one adapter at a time.

vLLM 0.32's own way (``PunicaWrapperCPU``) copies an adapter's matrices once for every token, so
eight adapters in a batch halve its throughput, the base model pays 10 to 20 % while nobody asks
an adapter, and a request of the base beside one of an adapter is given the weights of the last
slot: its index of "none", -1, is taken for a position. Here each adapter's tokens are multiplied
by its matrices together (Sheng et al. 2023, S-LoRA, section 5; Chen et al. 2023, Punica), and
tokens of the base are left alone. docs/adr/0010 has the measurements.

Imported inside the engine's process only, by ``maas.engines.vllm_server``.
"""

from dataclasses import dataclass
from typing import Any

import torch
from vllm.lora.layers import LoRAMapping
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU


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


class GroupedLora(PunicaWrapperCPU):
    """Applies adapters to the linear layers, a group of tokens at a time."""

    _groups: Groups | None = None

    def update_metadata(self, mapping: LoRAMapping, *args: Any, **kwargs: Any) -> None:
        """Take which adapter each token of the next step has."""
        super().update_metadata(mapping, *args, **kwargs)
        self._groups = group(self.token_lora_indices)

    def add_lora_linear(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: tuple[torch.Tensor, ...],
        lora_b_stacked: tuple[torch.Tensor, ...],
        scale: float,
        output_slices: tuple[int, ...],
        **_: Any,
    ) -> None:
        """Add what adapters change of one linear layer's output.

        Args:
            y: The layer's output ``[num_tokens, sum(output_slices)]``, changed in place.
            x: Its input ``[num_tokens, in]``.
            lora_a_stacked: For each slice ``[num_slots, 1, r, in]``.
            lora_b_stacked: For each slice ``[num_slots, 1, out, r]``.
            scale: Factor of the change; adapters have theirs in B already.
            output_slices: Widths of the slices.
        """
        groups = self._groups
        if groups is None:
            return
        x = x.view(-1, x.shape[-1])
        y = y.view(-1, y.shape[-1])
        if groups.order is not None:
            x = x.index_select(0, groups.order)
        if scale != 1.0:
            x = x * scale
        start = 0
        for a, b, width in zip(lora_a_stacked, lora_b_stacked, output_slices, strict=True):
            if a.dtype is not x.dtype:
                a, b = a.to(x.dtype), b.to(x.dtype)
            apply(y[:, start : start + width], x, a[:, 0], b[:, 0], groups)
            start += width
