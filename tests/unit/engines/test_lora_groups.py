"""Adapters grouped by token compute what each token's own adapter would."""

import pytest
import torch

from maas.engines.lora_groups import apply, apply_slices, group

NUM_SLOTS, R, NUM_IN, WIDTHS = 4, 2, 6, (5, 3)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(1)


def expected(y, x, a, b, indices):
    """Each token for itself; -1 is none."""
    rows = [
        row if slot < 0 else row + (token @ a[slot].T) @ b[slot].T
        for row, token, slot in zip(y, x, indices, strict=True)
    ]
    return torch.stack(rows)


BATCHES = {
    "one adapter": [2, 2, 2],
    "the last slot beside the base": [-1, 3, -1],
    "a token of each, in order": [0, 1, 2, 3],
    "two tokens of each": [0, 0, 1, 1],
    "mixed up": [3, 0, -1, 3, 1, 0, 0],
    "the first slots, mixed up": [1, 0, 1, 0],
    "base first": [-1, -1, 0, 1],
    "one token": [1],
}


@pytest.mark.parametrize("name", BATCHES)
def test_each_token_has_its_own_adapter(name):
    indices = BATCHES[name]
    x, y = torch.randn(len(indices), NUM_IN), torch.randn(len(indices), 5)
    a, b = torch.randn(NUM_SLOTS, R, NUM_IN), torch.randn(NUM_SLOTS, 5, R)
    wanted = expected(y, x, a, b, indices)
    groups = group(torch.tensor(indices))
    assert groups is not None
    apply(y, x if groups.order is None else x[groups.order], a, b, groups)
    torch.testing.assert_close(y, wanted)


def test_batch_of_the_base_alone_has_no_groups():
    assert group(torch.tensor([-1, -1])) is None
    assert group(torch.tensor([], dtype=torch.long)) is None


@pytest.mark.parametrize("indices", [[-1, 3, 0], [0, 0, 0], [2, 1, 0]])
def test_layer_of_several_slices_is_changed_slice_by_slice(indices):
    x, y = torch.randn(3, NUM_IN), torch.randn(3, sum(WIDTHS))
    a = tuple(torch.randn(NUM_SLOTS, 1, R, NUM_IN) for _ in WIDTHS)
    b = tuple(torch.randn(NUM_SLOTS, 1, width, R) for width in WIDTHS)
    parts = [
        expected(part, x, each_a[:, 0], each_b[:, 0], indices)
        for part, each_a, each_b in zip(y.split(WIDTHS, dim=1), a, b, strict=True)
    ]
    groups = group(torch.tensor(indices))
    assert groups is not None
    apply_slices(y, x, (a, b), WIDTHS, groups)
    torch.testing.assert_close(y, torch.cat(parts, dim=1))
