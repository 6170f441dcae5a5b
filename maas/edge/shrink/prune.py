"""Structured pruning: whole blocks, then the width of the feed-forward layers.

What is left is an ordinary model of the same architecture with smaller numbers in its
configuration, so transformers, vLLM and onnxruntime-genai's builder load it as any other.

Sources: "ShortGPT: Layers in Large Language Models are More Redundant Than You Expect" (Men et al.,
2024, block influence, eq. 1); "Compact Language Models via Pruning and Knowledge Distillation"
(Muralidharan et al., 2024, section 2.2, importance of feed-forward neurons by activations).
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


@dataclass(frozen=True)
class Pruned:
    """What was taken out.

    Attributes:
        blocks: Places of the blocks that went, in the original.
        intermediate_size: Width of the feed-forward layers now.
    """

    num_parameters_before: int
    num_parameters: int
    blocks: tuple[int, ...]
    intermediate_size: int

    def plain(self) -> dict[str, Any]:
        """Return it as the receipt has it."""
        return {
            "num_parameters_before": self.num_parameters_before,
            "num_parameters": self.num_parameters,
            "blocks_removed": list(self.blocks),
            "intermediate_size": self.intermediate_size,
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
    blocks = blocks_of(model)
    influences = _influences(model, rows)
    order = sorted(range(len(blocks)), key=influences.__getitem__)
    per_block = sum(parameter.numel() for parameter in blocks[0].parameters())
    width = int(model.config.intermediate_size)
    num_droppable = int(MAX_BLOCKS_SHARE * len(blocks))
    wanted = max(0, before - target_parameters)
    num_dropped = min(-(-wanted // per_block), num_droppable)
    num_left = len(blocks) - num_dropped
    rest = max(0, wanted - num_dropped * per_block)
    # Gate, up and down each have a row or column for a neuron.
    per_step = 3 * num_left * int(model.config.hidden_size) * WIDTH_STEP
    new_width = width - WIDTH_STEP * -(-rest // per_step)
    if new_width < _MIN_WIDTH_SHARE * width:
        least_width = -(-int(_MIN_WIDTH_SHARE * width) // WIDTH_STEP) * WIDTH_STEP
        steps = (width - least_width) // WIDTH_STEP
        least = before - num_dropped * per_block - steps * per_step
        raise ConfigError(
            f"{target_parameters} parameters: of {before}, no fewer than {least} can be left",
            param="target_parameters",
        )
    gone = tuple(sorted(order[:num_dropped]))
    if new_width < width:
        _narrow(model, rows, new_width)
    _drop(model, gone)
    return Pruned(before, count_parameters(model), gone, new_width)


def blocks_of(model: Any) -> nn.ModuleList:
    """Return a model's blocks, first to last."""
    return cast("nn.ModuleList", model.get_submodule("model").layers)


@torch.no_grad()
def _influences(model: Any, rows: Sequence[Tensor]) -> list[float]:
    """Return how much each block turns what passes through it: 1 less the mean cosine."""
    totals = [0.0] * len(blocks_of(model))
    for batch in rows:
        states = model(batch, output_hidden_states=True, use_cache=False).hidden_states
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
    for block in blocks_of(model):
        mlp = cast("Any", block).mlp
        loudness = _loudness(model, mlp.down_proj, rows)
        kept = loudness.topk(width).indices.sort().values
        for name in ("gate_proj", "up_proj"):
            linear = getattr(mlp, name)
            linear.weight = nn.Parameter(linear.weight[kept].clone())
            linear.out_features = width
            if linear.bias is not None:
                linear.bias = nn.Parameter(linear.bias[kept].clone())
        mlp.down_proj.weight = nn.Parameter(mlp.down_proj.weight[:, kept].clone())
        mlp.down_proj.in_features = width
        mlp.intermediate_size = width
    model.config.intermediate_size = width


def _loudness(model: Any, down: nn.Linear, rows: Sequence[Tensor]) -> Tensor:
    """Return the mean strength of each neuron, times what its column carries on."""
    total = torch.zeros(down.in_features)

    def add(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        total.add_(args[0].reshape(-1, down.in_features).float().abs().mean(0))

    handle = down.register_forward_pre_hook(add)
    try:
        for batch in rows:
            model(batch, use_cache=False)
    finally:
        handle.remove()
    return total * down.weight.float().norm(dim=0)
