"""AdamW on float32 copies of the trained parameters, with the learning rate's schedule.

The model computes in its own dtype; a bfloat16 weight is too coarse to be moved by 0.01 %, so
what is moved is a float32 master, and the model gets its rounding.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from maas.finetune.recipe import Recipe
from maas.finetune.train.ranks import Ranks
from maas.finetune.train.shards import own_part

ALONE = Ranks()


class MasterAdamW:
    """AdamW (Loshchilov and Hutter 2019) over masters.

    Args:
        parameters: What is trained, by name.
        recipe: Weight decay, clipping, schedule.
        learning_rate: The highest.
        num_steps: Of the whole run.
    """

    def __init__(
        self,
        parameters: Mapping[str, torch.nn.Parameter],
        recipe: Recipe,
        *,
        learning_rate: float,
        num_steps: int,
    ) -> None:
        self._parameters = dict(parameters)
        self._is_split = any(isinstance(p, DTensor) for p in self._parameters.values())
        self._recipe = recipe
        self._learning_rate = learning_rate
        self._num_steps = num_steps
        self._masters = {
            name: own_part(p.detach()).float().clone() for name, p in self._parameters.items()
        }
        for master in self._masters.values():
            master.grad = torch.zeros_like(master)
        self._adamw = torch.optim.AdamW(
            list(self._masters.values()),
            lr=learning_rate,
            betas=(0.9, 0.999),
            weight_decay=recipe.weight_decay,
            foreach=True,
        )

    @property
    def masters(self) -> dict[str, torch.Tensor]:
        """The parameters in full precision, by name."""
        return self._masters

    def step(self, step: int, ranks: Ranks = ALONE) -> float:
        """Move the parameters by their gradients, and clear those.

        Args:
            step: Number of this step, from 1.
            ranks: The workers that share this step.

        Returns:
            The gradient's norm before it was cut.
        """
        for name, parameter in self._parameters.items():
            gradient = self._masters[name].grad
            if gradient is None:
                continue
            # None: this worker had no part in the step.
            own = None if parameter.grad is None else own_part(parameter.grad)
            gradient.zero_() if own is None else gradient.copy_(own)
            parameter.grad = None
        gradients = [m.grad for m in self._masters.values() if m.grad is not None]
        if not self._is_split:
            ranks.add_up(gradients)
        norm = torch.nn.utils.get_total_norm(gradients)
        if self._is_split:
            # Each part was added up on its way back through the model.
            norm = ranks.norm(norm)
        torch.nn.utils.clip_grads_with_norm_(
            list(self._masters.values()), self._recipe.max_grad_norm, norm
        )
        for group in self._adamw.param_groups:
            group["lr"] = self._learning_rate * self._factor(step)
        self._adamw.step()
        self._write_back()
        return float(norm)

    def state(self) -> dict[str, Any]:
        """Return all that the next step depends on."""
        return {"masters": self._masters, "adamw": self._adamw.state_dict()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``state`` returned, on the same worker of as many."""
        for name, master in self._masters.items():
            master.copy_(state["masters"][name])
        self._adamw.load_state_dict(state["adamw"])
        self._write_back()

    def _write_back(self) -> None:
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                own_part(parameter).copy_(self._masters[name])

    def _factor(self, step: int) -> float:
        """Return the share of the highest learning rate at a step: up, then down towards 0.

        No step has a rate of 0: the last would be for nothing.
        """
        warmup = round(self._recipe.warmup_ratio * self._num_steps)
        if step <= warmup:
            return step / (warmup + 1)
        progress = (step - warmup - 1) / max(1, self._num_steps - warmup)
        match self._recipe.lr_scheduler:
            case "constant":
                return 1.0
            case "linear":
                return max(0.0, 1.0 - progress)
            case "cosine":
                return 0.5 * (1.0 + math.cos(math.pi * progress))
