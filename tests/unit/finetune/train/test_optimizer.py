"""The schedule rises, falls, and wastes no step; masters keep what bfloat16 would lose."""

import pytest
import torch

from maas.finetune.recipe import Recipe
from maas.finetune.train.optimizer import MasterAdamW


def optimizer(parameter, **recipe):
    fields = {"name": "t", "description": "d", "method": "supervised", "tuning": "lora"}
    made = Recipe.model_validate({**fields, "learning_rate": 1.0, **recipe})
    return MasterAdamW({"w": parameter}, made, learning_rate=1.0, num_steps=10)


@pytest.mark.parametrize(
    ("schedule", "warmup", "factors"),
    [
        ("linear", 0.0, [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]),
        ("linear", 0.2, [1 / 3, 2 / 3, 1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125]),
        ("constant", 0.1, [0.5] + [1.0] * 9),
    ],
)
def test_schedule_rises_and_falls_and_no_step_is_for_nothing(schedule, warmup, factors):
    made = optimizer(torch.nn.Parameter(torch.zeros(1)), lr_scheduler=schedule, warmup_ratio=warmup)
    assert [made._factor(step) for step in range(1, 11)] == pytest.approx(factors)


def test_masters_keep_moves_that_are_too_small_for_bfloat16():
    parameter = torch.nn.Parameter(torch.ones(1, dtype=torch.bfloat16))
    made = optimizer(parameter, lr_scheduler="constant", warmup_ratio=0.0)
    made._learning_rate = 1e-4
    for step in range(1, 101):
        parameter.grad = torch.ones_like(parameter)
        made.step(step)
    # A hundred steps of 0.0001; each alone is less than bfloat16 can show next to 1.
    assert float(made.masters["w"]) == pytest.approx(0.99, abs=1e-4)
    assert float(parameter.detach()) == pytest.approx(0.99, abs=4e-3)
    assert parameter.grad is None
