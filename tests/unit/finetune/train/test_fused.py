"""What is computed faster is what the plain operations compute, forward and backward."""

import pytest
import torch

from maas.finetune.train import attention
from maas.finetune.train.fused import CHUNK_TARGETS, LoraLinear, RmsNorm, target_logprobs


def gradients(function, *inputs, weight):
    """Return the value, and the gradients of its weighted sum."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    value = function(*leaves)
    (value * weight).sum().backward()
    return [value.detach(), *(leaf.grad for leaf in leaves)]


def agree(ours, theirs, tolerance=1e-5):
    return all(torch.allclose(a, b, atol=tolerance) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("has_bias", [False, True])
def test_lora_layer_and_its_gradients_are_those_of_the_formula(has_bias):
    torch.manual_seed(0)
    x, a, b = torch.randn(2, 5, 16), torch.randn(4, 16), torch.randn(7, 4)
    weight, out = torch.randn(7, 16), torch.randn(2, 5, 7)
    bias = torch.randn(7) if has_bias else None

    def plain(x, a, b):
        return torch.nn.functional.linear(x, weight, bias) + 0.5 * (x @ a.T @ b.T)

    def ours(x, a, b):
        return LoraLinear.apply(x, weight, bias, a, b, 0.5)

    assert agree(gradients(ours, x, a, b, weight=out), gradients(plain, x, a, b, weight=out))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.1)])
def test_norm_and_its_gradient_are_those_of_the_formula_and_input_stays(dtype, tolerance):
    torch.manual_seed(0)
    x, weight, out = torch.randn(6, 32).to(dtype), torch.randn(32), torch.randn(6, 32).to(dtype)
    leaf = x.clone().requires_grad_()
    value = RmsNorm.apply(leaf, weight, 1e-5)
    value.backward(out)

    def plain(x):
        return torch.nn.functional.rms_norm(x, (32,), weight, 1e-5)

    theirs = gradients(plain, x.float(), weight=out.float())
    assert agree([value.detach().float(), leaf.grad.float()], theirs, tolerance)
    assert torch.equal(leaf, x)


def test_target_logprobs_are_those_of_the_whole_logits_over_several_chunks():
    torch.manual_seed(0)
    count = CHUNK_TARGETS + 7
    hidden, head = torch.randn(count, 8), torch.randn(30, 8)
    targets, out = torch.randint(0, 30, (count,)), torch.randn(count)

    def plain(hidden):
        return torch.log_softmax(hidden @ head.T, -1)[torch.arange(count), targets]

    def ours(hidden):
        return target_logprobs(hidden, head, targets)[0]

    assert agree(gradients(ours, hidden, weight=out), gradients(plain, hidden, weight=out))
    likeliest = (hidden @ head.T).argmax(-1) == targets
    assert torch.equal(target_logprobs(hidden, head, targets)[1], likeliest)


def test_block_of_examples_attends_as_each_alone_forward_and_backward():
    torch.manual_seed(0)
    # Two blocks of short ones, and one too long for a block.
    lengths = (3, 60, 90, 1, 200, attention.MAX_SHORT_TOKENS + 5)
    total = sum(lengths)
    q, k, v = torch.randn(1, 6, total, 8), torch.randn(1, 2, total, 8), torch.randn(1, 2, total, 8)
    out = torch.randn(1, total, 6, 8)

    def plain(q, k, v):
        parts = [
            torch.nn.functional.scaled_dot_product_attention(
                *one, is_causal=True, scale=0.3, enable_gqa=True
            )
            for one in zip(*(x.split(lengths, dim=2) for x in (q, k, v)), strict=True)
        ]
        return torch.cat(parts, dim=2).transpose(1, 2)

    def ours(q, k, v):
        layer = torch.nn.Identity()
        return attention.packed_attention(layer, q, k, v, None, 0.3, row_lengths=lengths)[0]

    assert agree(gradients(ours, q, k, v, weight=out), gradients(plain, q, k, v, weight=out), 1e-4)


def test_blocks_hold_what_fits_in_order():
    assert attention.blocks_of((3, 4, 9, 30, 2), 10) == [(3, 4), (9,), (30,), (2,)]
