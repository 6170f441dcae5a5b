"""Faster ways to compute what a decoder computes, put in place only where they agree with it.

On processors with matrix units the multiplications of a small model are a third of the time;
the rest is passes over activations. So:

- ``LoraLinear``: both products of an adapter are added into the layer's output, and kept for the
  backward pass are its input and the narrow middle, nothing else.
- ``RmsNorm``: one statistic a token is kept instead of four copies of the input.
- ``target_logprobs``: output layer and loss for target positions alone, a chunk at a time; the
  logits (vocabulary times tokens) are never whole, forward or backward.

Every function is exact up to rounding: ``speed_up`` tries each on random input first.
"""

import types
from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLayer

from maas.core.errors import ConfigError

ADAPTER = "default"
CHUNK_TARGETS = 256
# Of the largest value; bfloat16 keeps 8 bits.
_TOLERANCE = 2e-2


class LoraLinear(torch.autograd.Function):
    """``y = x W' + b + s (x A') B'`` (Hu et al. 2021, equation 3), of frozen W and b."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> torch.Tensor:
        """Return y, shape (..., out), from x (..., in), W, b, A (r, in), B (out, r) and s."""
        x, weight, bias, a, b, scaling = inputs
        flat = x.reshape(-1, x.shape[-1])
        middle = flat.mm(a.t()).mul_(scaling)
        out = torch.nn.functional.linear(flat, weight, bias)
        out.addmm_(middle, b.t())
        ctx.save_for_backward(flat, weight, a, b, middle)
        ctx.scaling = scaling
        ctx.shape = x.shape
        return out.view(*x.shape[:-1], out.shape[-1])

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradients of x, A and B."""
        flat, weight, a, b, middle = ctx.saved_tensors
        grad = grads[0].reshape(-1, weight.shape[0])
        grad_middle = grad.mm(b).mul_(ctx.scaling)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = grad.mm(weight).addmm_(grad_middle, a).view(ctx.shape)
        return grad_x, None, None, grad_middle.t().mm(flat), grad.t().mm(middle), None


class RmsNorm(torch.autograd.Function):
    """``y = w x / sqrt(mean(x^2) + eps)`` (Zhang and Sennrich 2019), of a frozen w."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> torch.Tensor:
        """Return y from x (..., H), w (H,) in float32 and eps."""
        x, weight, eps = inputs
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        scale = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        return (x * scale).mul_(weight).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradient of x."""
        x, weight, scale = ctx.saved_tensors
        grad = grads[0] * weight
        wide = x.float()
        along = torch.linalg.vecdot(grad, wide).unsqueeze(-1)
        along.mul_(scale).mul_(scale).div_(-x.shape[-1])
        return grad.addcmul_(wide, along).mul_(scale).to(x.dtype), None, None


class _TargetLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        hidden, weight, targets, needs_grad = inputs
        logprobs = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
        is_likeliest = torch.empty(len(targets), dtype=torch.bool, device=hidden.device)
        grads = torch.empty_like(hidden) if needs_grad else None
        for start in range(0, len(targets), CHUNK_TARGETS):
            at = slice(start, start + CHUNK_TARGETS)
            wanted = targets[at, None]
            logits = torch.nn.functional.linear(hidden[at], weight)
            highest = logits.amax(-1, keepdim=True)
            is_likeliest[at] = (logits.gather(-1, wanted) >= highest)[:, 0]
            logs = torch.log_softmax(logits, -1, dtype=torch.float32)
            logprobs[at] = logs.gather(-1, wanted)[:, 0]
            if grads is not None:
                # d logprob / d logits = onehot - p: one row each, whatever is made of it later.
                slope = logs.exp_().neg_()
                slope.scatter_add_(-1, wanted, torch.ones_like(wanted, dtype=slope.dtype))
                torch.mm(slope.to(weight.dtype), weight, out=grads[at])
        ctx.save_for_backward(grads)
        ctx.mark_non_differentiable(is_likeliest)
        return logprobs, is_likeliest

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (slopes,) = ctx.saved_tensors
        return slopes * grads[0][:, None].to(slopes.dtype), None, None, None


def target_logprobs(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return log-probabilities of targets, and whether each was the likeliest.

    Args:
        hidden: What goes into the output layer, shape (N, H).
        weight: Of the output layer, frozen, shape (vocabulary, H).
        targets: int64, shape (N,).

    Returns:
        float32 (N,) and bool (N,).
    """
    needs_grad = torch.is_grad_enabled() and hidden.requires_grad
    logprobs, is_likeliest = _TargetLogprobs.apply(hidden, weight, targets, needs_grad)
    return logprobs, is_likeliest


def speed_up(module: torch.nn.Module) -> None:
    """Replace what is known, in place; what is not, or does not agree, stays as it is.

    Args:
        module: A model with an adapter, on its device, in its dtype.
    """
    for part in module.modules():
        if isinstance(part, LoraLayer):
            _replace(part, _lora_forward, is_known=_is_plain_lora(part))
        elif type(part).__name__.endswith("RMSNorm"):
            weight = getattr(part, "weight", None)
            has_eps = hasattr(part, "variance_epsilon")
            is_known = has_eps and weight is not None and not weight.requires_grad
            _replace(part, _norm_forward, is_known=is_known)


def _is_plain_lora(layer: LoraLayer) -> bool:
    return (
        type(layer.get_base_layer()) is torch.nn.Linear
        and isinstance(layer.lora_dropout[ADAPTER], torch.nn.Identity)
        and not layer.lora_bias[ADAPTER]
        and not layer.use_dora.get(ADAPTER, False)
    )


def _replace(part: Any, forward: Any, *, is_known: bool) -> None:
    if not is_known:
        return
    slow = part.forward
    part.slow_forward = slow
    layer: Any = part.get_base_layer() if isinstance(part, LoraLayer) else part
    weight: torch.Tensor = layer.weight
    x = torch.randn(2, weight.shape[-1], generator=torch.Generator().manual_seed(0))
    x = x.to(weight.device, weight.dtype)
    with torch.no_grad():
        want, got = slow(x), forward(part, x)
    if float((want - got).abs().max()) <= _TOLERANCE * float(want.abs().max()):
        part.forward = types.MethodType(forward, part)


def _lora_forward(layer: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    if layer.disable_adapters or layer.merged or args or kwargs:
        return layer.slow_forward(x, *args, **kwargs)
    base = layer.get_base_layer()
    a, b = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
    if x.dtype != a.dtype:
        raise ConfigError(f"adapter in {a.dtype}, activations in {x.dtype}")
    out = LoraLinear.apply(x, base.weight, base.bias, a, b, layer.scaling[ADAPTER])
    return torch.as_tensor(out)


def _norm_forward(norm: Any, x: torch.Tensor) -> torch.Tensor:
    if x.is_cuda:
        return torch.nn.functional.rms_norm(x, (x.shape[-1],), norm.weight, norm.variance_epsilon)
    out = RmsNorm.apply(x, norm.weight.float(), norm.variance_epsilon)
    return torch.as_tensor(out)
