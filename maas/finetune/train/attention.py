"""Attention over examples that lie end to end, registered with transformers as ``maas_packed``.

Each example attends within itself, so packing is exact. On GPUs that is one causal
``scaled_dot_product_attention`` an example. On processors that kernel takes three times the time
of plain products up to some hundred tokens, so there short examples are put together into blocks
of one small mask each, and only long ones go through the kernel.
"""

from functools import lru_cache
from typing import Any

import torch
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

NAME = "maas_packed"
# Examples that share a mask: the products waste what lies between them, a call costs more.
BLOCK_TOKENS = 128
# Beyond this the weights that are kept, T x T a head, outgrow the caches.
MAX_SHORT_TOKENS = 768


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
    rate = dropout if module.training else 0.0
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    is_plain = query.device.type == "cpu" and rate == 0.0 and sliding_window is None
    blocks = blocks_of(row_lengths, BLOCK_TOKENS) if is_plain else [(n,) for n in row_lengths]
    sizes = [sum(block) for block in blocks]
    parts = [
        _short(q, k, v, block, scale)
        if is_plain and sum(block) <= MAX_SHORT_TOKENS
        else _long(q, k, v, (sliding_window, rate, scale))
        for q, k, v, block in zip(
            query.split(sizes, dim=2),
            key.split(sizes, dim=2),
            value.split(sizes, dim=2),
            blocks,
            strict=True,
        )
    ]
    out = parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)
    return out.transpose(1, 2), None


@lru_cache(maxsize=1024)
def blocks_of(lengths: tuple[int, ...], max_tokens: int) -> list[tuple[int, ...]]:
    """Return consecutive lengths in groups of at most ``max_tokens``; longer ones alone."""
    blocks: list[tuple[int, ...]] = []
    for length in lengths:
        if blocks and sum(blocks[-1]) + length <= max_tokens:
            blocks[-1] = (*blocks[-1], length)
        else:
            blocks.append((length,))
    return blocks


@lru_cache(maxsize=64)
def _block_mask(lengths: tuple[int, ...], num_groups: int) -> torch.Tensor:
    """Return what is added to scores: float32, shape (groups x T, T); -inf where unseen."""
    example = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    is_seen = (example[:, None] == example[None, :]).tril()
    mask = torch.zeros(is_seen.shape).masked_fill_(~is_seen, float("-inf"))
    return mask.repeat(num_groups, 1)


class _BlockAttention(torch.autograd.Function):
    """Softmax attention by plain products; the weights are kept for the backward pass."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> torch.Tensor:
        """Return (kv_heads, groups x T, D) from q of that shape, k and v (kv_heads, T, D)."""
        q, k, v, mask, scale = inputs
        # Scores in float32: rounded to bfloat16 they would be off by some percent.
        scores = torch.baddbmm(mask, q.float(), k.float().transpose(1, 2), alpha=scale)
        weights = torch.softmax(scores, -1).to(q.dtype)
        ctx.save_for_backward(q, k, v, weights)
        ctx.scale = scale
        return torch.bmm(weights, v)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradients of q, k and v."""
        q, k, v, weights = ctx.saved_tensors
        grad = grads[0]
        grad_weights = torch.bmm(grad, v.transpose(1, 2))
        # Softmax' own backward kernel; autograd calls the same.
        softmax_backward = torch.ops.aten._softmax_backward_data.default
        scores = softmax_backward(grad_weights, weights, -1, weights.dtype).mul_(ctx.scale)
        return (
            torch.bmm(scores, k),
            torch.bmm(scores.transpose(1, 2), q),
            torch.bmm(weights.transpose(1, 2), grad),
            None,
            None,
        )


def _short(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    lengths: tuple[int, ...],
    scale: float,
) -> torch.Tensor:
    """Attend within a block of short examples."""
    num_groups = query.shape[1] // key.shape[1]
    # Query heads that share a key head lie side by side: they become more rows of it.
    grouped = query.reshape(key.shape[1], -1, query.shape[-1])
    mask = _block_mask(lengths, num_groups)
    out = _BlockAttention.apply(grouped, key[0], value[0], mask, scale)
    return torch.as_tensor(out).view(query.shape)


def _long(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    how: tuple[int | None, float, float],
) -> torch.Tensor:
    """Attend within one example."""
    sliding_window, rate, scale = how
    length = query.shape[2]
    is_all_seen = sliding_window is None or length <= sliding_window
    return torch.nn.functional.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=None if is_all_seen else _window(length, sliding_window, query.device),
        dropout_p=rate,
        is_causal=is_all_seen,
        scale=scale,
        enable_gqa=query.shape[1] != key.shape[1],
    )


def _window(length: int, sliding_window: int | None, device: torch.device) -> torch.Tensor | None:
    if sliding_window is None:
        return None
    at = torch.arange(length, device=device)
    back = at[:, None] - at[None, :]
    return (back >= 0) & (back < sliding_window)


def _no_mask(*_: Any, **__: Any) -> None:
    return None


ALL_ATTENTION_FUNCTIONS.register(NAME, packed_attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, _no_mask)
