"""AdamW on float32 copies of the trained parameters, with the learning rate's schedule.

The model computes in its own dtype; a bfloat16 weight is too coarse to be moved by 0.01 %, so
what is moved is a float32 master, and the model gets its rounding.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from maas.finetune.recipe import Recipe


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
        self._recipe = recipe
        self._learning_rate = learning_rate
        self._num_steps = num_steps
        self._masters = {name: p.detach().float().clone() for name, p in self._parameters.items()}
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

    def step(
        self, step: int, add_up: Callable[[Sequence[torch.Tensor]], None] = lambda _: None
    ) -> float:
        """Move the parameters by their gradients, and clear those.

        Args:
            step: Number of this step, from 1.
            add_up: Makes each gradient the sum of all workers'.

        Returns:
            The gradient's norm before it was cut.
        """
        for name, parameter in self._parameters.items():
            gradient = self._masters[name].grad
            if gradient is None:
                continue
            # None: this worker had no part in the step.
            gradient.zero_() if parameter.grad is None else gradient.copy_(parameter.grad)
            parameter.grad = None
        add_up([m.grad for m in self._masters.values() if m.grad is not None])
        norm = torch.nn.utils.clip_grad_norm_(
            list(self._masters.values()), self._recipe.max_grad_norm
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
        """Go on from what ``state`` returned."""
        for name, master in self._masters.items():
            master.copy_(state["masters"][name])
        self._adamw.load_state_dict(state["adamw"])
        self._write_back()

    def _write_back(self) -> None:
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.copy_(self._masters[name])

    def _factor(self, step: int) -> float:
        """Return the share of the highest learning rate at a step: up, then down to 0."""
        warmup = max(1, round(self._recipe.warmup_ratio * self._num_steps))
        if step < warmup:
            return step / warmup
        progress = (step - warmup) / max(1, self._num_steps - warmup)
        match self._recipe.lr_scheduler:
            case "constant":
                return 1.0
            case "linear":
                return max(0.0, 1.0 - progress)
            case "cosine":
                return 0.5 * (1.0 + math.cos(math.pi * progress))
