"""Structured pruning: blocks, then the width of the feed-forward layers, then attention heads.

What is left is an ordinary model of the same architecture with smaller numbers in its
configuration, so transformers, vLLM and onnxruntime-genai's builder load it as any other.

Sources: "ShortGPT: Layers in Large Language Models are More Redundant Than You Expect" (Men et al.,
2024, block influence, eq. 1); "Compact Language Models via Pruning and Knowledge Distillation"
(Muralidharan et al., 2024, section 2.2, importance of neurons and heads by activations).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from maas.core.errors import ConfigError

# Widths that kernels and blocks of quantised weights divide.
WIDTH_STEP = 64
# Beyond this share of its blocks a model forgets more than a short recovery brings back.
MAX_BLOCKS_SHARE = 0.25
_MIN_WIDTH_SHARE = 0.5
_MIN_HEADS_SHARE = 0.5


@dataclass(frozen=True)
class Pruned:
    """What was taken out.

    Attributes:
        blocks: Places of the blocks that went, in the original.
        intermediate_size: Width of the feed-forward layers now.
        num_key_value_heads: Of a block now; the heads that read a lost one are gone with it.
    """

    num_parameters_before: int
    num_parameters: int
    blocks: tuple[int, ...]
    intermediate_size: int
    num_key_value_heads: int

    def plain(self) -> dict[str, Any]:
        """Return it as the receipt has it."""
        return {
            "num_parameters_before": self.num_parameters_before,
            "num_parameters": self.num_parameters,
            "blocks_removed": list(self.blocks),
            "intermediate_size": self.intermediate_size,
            "num_key_value_heads": self.num_key_value_heads,
        }


def count_parameters(model: nn.Module) -> int:
    """Return a model's parameters; those that are tied count once."""
    return sum(parameter.numel() for parameter in model.parameters())


def prune(model: Any, rows: Sequence[Tensor], target_parameters: int) -> Pruned:
    """Take parameters out of a model until it has no more than wanted, in place.

    Args:
        model: A Llama-like model from transformers.
        rows: Calibration text, each of shape (rows, length).
        target_parameters: At most so many are left.

    Raises:
        ConfigError: It would have to lose more than can be recovered; the message says how small
            it can get.
    """
    before = count_parameters(model)
    influences = _influences(model, rows)
    order = sorted(range(len(influences)), key=influences.__getitem__)
    plan = _plan(model, target_parameters)
    gone = tuple(sorted(order[: plan.num_dropped]))
    if plan.width < model.config.intermediate_size:
        _narrow(model, rows, plan.width)
    if plan.num_groups < model.config.num_key_value_heads:
        drop_heads(model, rows, plan.num_groups)
    _drop(model, gone)
    return Pruned(before, count_parameters(model), gone, plan.width, plan.num_groups)


@dataclass(frozen=True)
class _Plan:
    """How much goes: blocks that are dropped, the width and the key-value heads that stay."""

    num_dropped: int
    width: int
    num_groups: int


def _plan(model: Any, target: int) -> _Plan:
    before, blocks, config = count_parameters(model), blocks_of(model), model.config
    per_block = sum(parameter.numel() for parameter in blocks[0].parameters())
    wanted = max(0, before - target)
    num_dropped = min(-(-wanted // per_block), int(MAX_BLOCKS_SHARE * len(blocks)))
    num_left = len(blocks) - num_dropped
    rest = max(0, wanted - num_dropped * per_block)
    # Gate, up and down each have a row or column for a neuron.
    per_step = 3 * num_left * int(config.hidden_size) * WIDTH_STEP
    width = int(config.intermediate_size)
    most_steps = int((1 - _MIN_WIDTH_SHARE) * width) // WIDTH_STEP
    per_group, most_groups = _group_size(model) * num_left, _droppable_groups(model)
    over = max(0, rest - most_steps * per_step)
    num_groups = min(-(-over // per_group), most_groups) if most_groups else 0
    # Heads go in large pieces: what is too much is given back in width.
    num_steps = -(-max(0, rest - num_groups * per_group) // per_step)
    if num_steps > most_steps:
        gone = num_dropped * per_block + most_steps * per_step + num_groups * per_group
        raise ConfigError(
            f"{target} parameters: of {before}, no fewer than {before - gone} can be left",
            param="target_parameters",
        )
    num_kept = int(config.num_key_value_heads) - num_groups
    return _Plan(num_dropped, width - num_steps * WIDTH_STEP, num_kept)


def _group_size(model: Any) -> int:
    """Return the parameters of a key-value head with the heads that read it, in one block."""
    config = model.config
    per_group = config.num_attention_heads // config.num_key_value_heads
    return 2 * (per_group + 1) * head_dim(model.config) * int(config.hidden_size)


def _droppable_groups(model: Any) -> int:
    names = {name for name, _ in blocks_of(model)[0].named_modules()}
    if not names.issuperset(f"self_attn.{part}_proj" for part in "qkvo"):
        return 0
    return int((1 - _MIN_HEADS_SHARE) * model.config.num_key_value_heads)


def head_dim(config: Any) -> int:
    """Return the size of a head, by a model's configuration."""
    return int(
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )


def blocks_of(model: Any) -> nn.ModuleList:
    """Return a model's blocks, first to last."""
    return cast("nn.ModuleList", model.get_submodule("model").layers)


@torch.no_grad()
def _influences(model: Any, rows: Sequence[Tensor]) -> list[float]:
    """Return how much each block turns what passes through it: 1 less the mean cosine."""
    totals = [0.0] * len(blocks_of(model))
    for batch in rows:
        out = model(batch, output_hidden_states=True, use_cache=False, logits_to_keep=1)
        states = out.hidden_states
        for place in range(len(totals)):
            before, after = states[place].float(), states[place + 1].float()
            cosine = nn.functional.cosine_similarity(before, after, dim=-1)
            totals[place] += float((1.0 - cosine).mean())
    # The ends change what the embedding and the head read: they stay.
    totals[0] = totals[-1] = float("inf")
    return totals


def _drop(model: Any, gone: Sequence[int]) -> None:
    kept = [block for place, block in enumerate(blocks_of(model)) if place not in set(gone)]
    for place, block in enumerate(kept):
        # Attention finds its part of the cache by this.
        cast("Any", block).self_attn.layer_idx = place
    model.get_submodule("model").layers = nn.ModuleList(kept)
    model.config.num_hidden_layers = len(kept)
    if getattr(model.config, "layer_types", None):
        kinds = model.config.layer_types
        model.config.layer_types = [k for place, k in enumerate(kinds) if place not in set(gone)]


@torch.no_grad()
def _narrow(model: Any, rows: Sequence[Tensor], width: int) -> None:
    """Keep the feed-forward neurons that say most."""
    layers = [cast("Any", block).mlp for block in blocks_of(model)]
    found = _loudness(model, [mlp.down_proj for mlp in layers], rows)
    for mlp, loudness in zip(layers, found, strict=True):
        kept = loudness.topk(width).indices.sort().values
        for name in ("gate_proj", "up_proj"):
            _keep_outputs(getattr(mlp, name), kept)
        mlp.down_proj.weight = nn.Parameter(mlp.down_proj.weight[:, kept].clone())
        mlp.down_proj.in_features = width
        mlp.intermediate_size = width
    model.config.intermediate_size = width


def _loudness(model: Any, linears: Sequence[nn.Linear], rows: Sequence[Tensor]) -> list[Tensor]:
    """Return the mean strength of each layer's inputs, times what their columns carry on."""
    totals = [torch.zeros(linear.in_features) for linear in linears]
    handles: list[Any] = []
    for linear, total in zip(linears, totals, strict=True):

        def add(_: nn.Module, args: tuple[Tensor, ...], total: Tensor = total) -> None:
            total.add_(args[0].reshape(-1, len(total)).float().abs().mean(0))

        handles.append(linear.register_forward_pre_hook(add))
    try:
        for batch in rows:
            # For what passes through; of the logits one is enough.
            model(batch, use_cache=False, logits_to_keep=1)
    finally:
        for handle in handles:
            handle.remove()
    pairs = zip(linears, totals, strict=True)
    return [total * linear.weight.float().norm(dim=0) for linear, total in pairs]


@torch.no_grad()
def drop_heads(model: Any, rows: Sequence[Tensor], num_groups: int) -> None:
    """Keep the key-value heads whose readers say most, with those."""
    config, size = model.config, head_dim(model.config)
    per_group = config.num_attention_heads // config.num_key_value_heads
    layers = [cast("Any", block).self_attn for block in blocks_of(model)]
    found = _loudness(model, [attention.o_proj for attention in layers], rows)
    for attention, loudness in zip(layers, found, strict=True):
        by_group = loudness.view(config.num_key_value_heads, -1).sum(1)
        kept = by_group.topk(num_groups).indices.sort().values
        read = _members(kept, per_group * size)
        _keep_outputs(attention.q_proj, read)
        for linear in (attention.k_proj, attention.v_proj):
            _keep_outputs(linear, _members(kept, size))
        attention.o_proj.weight = nn.Parameter(attention.o_proj.weight[:, read].clone())
        attention.o_proj.in_features = len(read)
    config.head_dim = size
    config.num_attention_heads = num_groups * per_group
    config.num_key_value_heads = num_groups


def _members(groups: Tensor, size: int) -> Tensor:
    """Return the places of groups' parts, where each has so many side by side."""
    return (groups[:, None] * size + torch.arange(size)).flatten()


def _keep_outputs(linear: nn.Linear, kept: Tensor) -> None:
    linear.weight = nn.Parameter(linear.weight[kept].clone())
    linear.out_features = len(kept)
    if linear.bias is not None:
        linear.bias = nn.Parameter(linear.bias[kept].clone())
