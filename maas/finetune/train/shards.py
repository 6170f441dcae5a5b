"""FSDP: a model's weights, split over the workers of its run.

Each worker holds its part of every layer, and has a layer whole only while it computes it (Zhao
et al. 2023; torch's ``fully_shard``). An adapter is small and stays whole everywhere: its
gradients are added up as they are without FSDP. Of a model that is tuned whole, the masters and
moments are split as the weights are.

A layer is gathered by all workers or by none, so all run the same number of passes; who has
nothing left to learn from in a step runs *idle* ones.
"""

from collections.abc import Collection
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from maas.core.errors import ConfigError


class Shards:
    """The workers of a run as places for parts of weights.

    Args:
        size: How many there are.
        device: Where this one computes.
    """

    def __init__(self, size: int, device: torch.device) -> None:
        self._device = device
        self._mesh = init_device_mesh(device.type, (size,))

    def split(
        self,
        model: torch.nn.Module,
        decoder: torch.nn.Module,
        trained: Collection[torch.nn.Parameter],
    ) -> None:
        """Leave a worker with its part of a model's weights.

        Args:
            model: The whole model, not an adapter around it.
            decoder: The part of it that holds the layers.
            trained: Parameters of an adapter, which stay whole; none: everything is trained.
        """
        layers = _layers(decoder)
        in_layers = {parameter for layer in layers for parameter in layer.parameters()}
        for layer in layers:
            own = set(layer.parameters())
            fully_shard(layer, mesh=self._mesh, ignored_params=own & set(trained))
        if trained:
            # The embedding is used outside of the decoder too, where nothing gathers it.
            kept = (set(decoder.parameters()) - in_layers) | set(trained)
            fully_shard(decoder, mesh=self._mesh, ignored_params=kept)
        else:
            fully_shard(model, mesh=self._mesh)
        for part in model.modules():
            if isinstance(part, FSDPModule):
                # A step's loss is scaled by the items of all workers: what they have is added.
                part.set_gradient_divide_factor(1.0)
                part.set_force_sum_reduction_for_comms(True)

    def num_idle(self, num_passes: int) -> int:
        """Return how many idle passes this worker owes the one with the most."""
        most = torch.tensor([num_passes], device=self._device)
        dist.all_reduce(most, dist.ReduceOp.MAX)
        return int(most.item()) - num_passes


def gathered(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return whole weights by name, in main memory of the first worker; all must ask.

    Weights that two layers share are there once, under the first's name.
    """
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights: dict[str, Any] = get_model_state_dict(model, options=options)
    every = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    shared = every - {name for name, _ in model.named_parameters()}
    return {name: weight for name, weight in weights.items() if name not in shared}


def own_part(tensor: torch.Tensor) -> torch.Tensor:
    """Return what of a tensor this worker holds: it shares its memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _layers(decoder: torch.nn.Module) -> list[torch.nn.Module]:
    stacks = [part for part in decoder.children() if isinstance(part, torch.nn.ModuleList)]
    if not stacks:
        raise ConfigError("strategy fsdp splits a stack of layers, and this model has none")
    return list(max(stacks, key=len))
