"""Attention over examples that lie end to end, registered with transformers as ``maas_packed``.

Each example attends within itself: one causal ``scaled_dot_product_attention`` an example
instead of a mask of T x T, so packing costs nothing and is exact.
"""

from typing import Any

import torch
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

NAME = "maas_packed"


def packed_attention(  # noqa: PLR0913 - transformers' signature
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,  # noqa: ARG001 - transformers' signature
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    *,
    row_lengths: tuple[int, ...],
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attend within each example.

    Args:
        module: The attention layer; says how many query heads share a key head.
        query: Shape (1, heads, T, head_dim).
        key: Shape (1, kv_heads, T, head_dim).
        value: The same.
        attention_mask: None; lengths say all.
        scaling: Of the scores; None is ``1 / sqrt(head_dim)``.
        dropout: Of the scores.
        sliding_window: Tokens that are seen backwards, itself included; None sees all.
        row_lengths: Tokens of each example; the model hands it down from its own call.

    Returns:
        Shape (1, T, heads, head_dim), and no weights.
    """
    is_grouped = query.shape[1] != key.shape[1]
    lengths = list(row_lengths)
    parts = [
        torch.nn.functional.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=_window(length, sliding_window, q.device),
            dropout_p=dropout if module.training else 0.0,
            is_causal=sliding_window is None or length <= sliding_window,
            scale=scaling,
            enable_gqa=is_grouped,
        )
        for q, k, v, length in zip(
            query.split(lengths, dim=2),
            key.split(lengths, dim=2),
            value.split(lengths, dim=2),
            lengths,
            strict=True,
        )
    ]
    out = parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)
    return out.transpose(1, 2), None


def _window(length: int, sliding_window: int | None, device: torch.device) -> torch.Tensor | None:
    if sliding_window is None or length <= sliding_window:
        return None
    at = torch.arange(length, device=device)
    back = at[:, None] - at[None, :]
    return (back >= 0) & (back < sliding_window)


def _no_mask(*_: Any, **__: Any) -> None:
    return None


ALL_ATTENTION_FUNCTIONS.register(NAME, packed_attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, _no_mask)
