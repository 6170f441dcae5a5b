"""Packing: no example sees another, none is lost, and the order depends on the seed alone."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from maas.finetune.data.rendering import Renderer
from maas.finetune.recipe import Recipe
from maas.finetune.train.model import TrainedModel
from maas.finetune.train.packing import batches, pack, split
from tests.unit.finetune.conftest import chats


@pytest.fixture(scope="module")
def model(tiny_dir):
    recipe = Recipe(name="t", description="d", method="supervised", tuning="lora", learning_rate=1)
    made = TrainedModel(tiny_dir, recipe, torch.device("cpu"), 0)
    made.module.float()
    return made


def test_packed_row_says_what_each_example_says_alone(model, tiny_dir):
    renderer = Renderer(tiny_dir)
    examples = [e for chat in chats(5) for e in renderer.render(chat["messages"])]
    with torch.no_grad():
        together = model.predict(pack(examples)).logprobs
        alone = torch.cat([model.predict(pack([example])).logprobs for example in examples])
    assert len(together) == sum(example.num_targets for example in examples)
    assert torch.allclose(together, alone, atol=1e-5)


def test_packed_row_says_what_the_plain_model_says(model, tiny_dir):
    (example,) = Renderer(tiny_dir).render(chats(1)[0]["messages"])
    row = pack([example])
    with torch.no_grad():
        ours = model.predict(row).logprobs
        model.module.base_model.model.config._attn_implementation = "eager"
        logits = model.module(input_ids=row.input_ids).logits[0]
        model.module.base_model.model.config._attn_implementation = "maas_packed"
    theirs = torch.log_softmax(logits.float(), -1)[row.predicting, row.targets]
    assert torch.allclose(ours, theirs, atol=1e-4)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=40), st.integers(10, 100))
def test_split_keeps_every_example_once_within_the_limit(lengths, limit):
    groups = split(lengths, limit)
    assert sorted(index for group in groups for index in group) == list(range(len(lengths)))
    for group in groups:
        assert sum(lengths[i] for i in group) <= limit or len(group) == 1


@given(st.integers(1, 50), st.integers(1, 9), st.integers(0, 9), st.integers(0, 3))
def test_epoch_sees_every_example_once_in_an_order_of_its_own(count, size, seed, epoch):
    order = list(batches(count, size, seed=seed, epoch=epoch))
    assert sorted(index for batch in order for index in batch) == list(range(count))
    assert order == list(batches(count, size, seed=seed, epoch=epoch))
