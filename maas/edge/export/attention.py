"""Attention of steps of one token, as fast as processors can: heads that share keys go together.

torch's kernel takes one query at a time and wants keys and values repeated for each head; with the
queries of a group side by side it reads them once (a sixth of the time in bfloat16).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

_NAME = "maas_grouped"


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, Any]:
    rows, heads, length, size = query.shape
    groups = key.shape[1]
    if length > 1 or heads == groups:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    together = query.view(rows, groups, heads // groups, size)
    mask = attention_mask
    if mask is not None:
        mask = mask[:, :, :, : key.shape[2]].expand(-1, -1, heads // groups, -1)
    out = nn.functional.scaled_dot_product_attention(
        together, key, value, attn_mask=mask, scale=options.get("scaling")
    )
    return out.reshape(rows, 1, heads, size), None


@contextmanager
def grouped_attention(model: Any) -> Iterator[None]:
    """Have a model whose attention is torch's compute steps of one token faster."""
    before = model.config._attn_implementation
    if before != "sdpa":
        yield
        return
    AttentionInterface.register(_NAME, _attend)
    AttentionMaskInterface.register(_NAME, sdpa_mask)
    model.set_attn_implementation(_NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(before)
