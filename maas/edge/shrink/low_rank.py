"""Low-rank decomposition: a linear layer becomes two thinner ones, where that saves parameters.

Sources: "SVD-LLM: Truncation-aware Singular Value Decomposition for Large Language Model
Compression" (Wang et al., 2024, section 3.1: what is cut off is measured on the inputs the layer
gets, so the truncated singular values are the loss in its outputs). With the inputs' Gram matrix
``G`` and the leading eigenvectors ``U`` of ``W G W^T``, the best ``W'`` of rank r is ``U U^T W``;
it is their whitened decomposition without the inverse. Losses of different layers are compared by
the Fisher information of their outputs: "Language Model Compression with Weighted Low-Rank
Factorization" (Hsu et al., 2022, section 3), here on text the model wrote, where it is the
curvature of the divergence.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from maas.core.errors import ConfigError
from maas.edge.export.blocks import adder, first_inputs, linear_of, run_block
from maas.edge.shrink.prune import blocks_of, count_parameters

# Blocks of quantised weights divide it.
RANK_STEP = 64
# Below this share of its full rank a layer forgets more than a short recovery brings back.
_MIN_RANK_SHARE = 0.25
_NUM_BISECTIONS = 60
_BACKWARD_ROWS = 4
# What the built graph computes as one product is decomposed as one, with one first factor.
_PRODUCTS = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.o_proj",),
    ("mlp.gate_proj",),
    ("mlp.up_proj",),
    ("mlp.down_proj",),
)
Tell = Callable[[float], None]
Product = tuple[int, tuple[str, ...]]


class LowRank(nn.Module):
    """Two linear layers in place of one: ``y = up(down(x))``.

    Args:
        down: From the inputs to the rank; layers with the same inputs may share it.
        up: From the rank to the outputs.
    """

    def __init__(self, down: nn.Linear, up: nn.Linear) -> None:
        super().__init__()
        self.down = down
        self.up = up

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the outputs, shape (..., outputs)."""
        return self.up(self.down(inputs))

    def product(self) -> Tensor:
        """Return the weight it stands for, shape (outputs, inputs)."""
        weight = self.up.weight.float() @ self.down.weight.float()
        return weight.to(self.up.weight.dtype)


@dataclass(frozen=True)
class Decomposed:
    """What became of a model.

    Attributes:
        ranks: By the modules' names; those that stayed whole are not in it.
        expected_divergence: In nats a token, to second order and before any recovery.
    """

    num_parameters_before: int
    num_parameters: int
    ranks: dict[str, int]
    expected_divergence: float

    def plain(self) -> dict[str, Any]:
        """Return it as the receipt has it."""
        return {
            "num_parameters_before": self.num_parameters_before,
            "num_parameters": self.num_parameters,
            "ranks": self.ranks,
            "expected_divergence": self.expected_divergence,
        }


@dataclass(frozen=True)
class _Choices:
    """What a product can become: parameters and loss, at full rank first."""

    ranks: tuple[int | None, ...]
    sizes: tuple[int, ...]
    losses: tuple[float, ...]

    def best(self, price: float) -> int:
        """Return the place of the least loss, where a parameter costs so much."""
        costs = [loss + price * size for loss, size in zip(self.losses, self.sizes, strict=True)]
        return costs.index(min(costs))


def decompose(
    model: Any, rows: Sequence[Tensor], target_parameters: int, tell: Tell = lambda _: None
) -> Decomposed:
    """Give a model's linear layers lower ranks until it has no more parameters than wanted.

    Args:
        model: A Llama-like model from transformers; changed in place.
        rows: Calibration text, each of shape (rows, length).
        target_parameters: At most so many are left.
        tell: Told the share that is done, 0 to 1.

    Raises:
        ConfigError: It would have to lose more than can be recovered; the message says how small
            it can get.
    """
    before = count_parameters(model)
    weights = _sensitivities(model, rows[:1])
    choices: dict[Product, _Choices] = {}
    # One batch is enough to choose; what is chosen is computed on all.
    for index, block, grams in _walk(model, rows[:1]):
        for names, gram in grams.items():
            linears = [linear_of(block, name) for name in names]
            choices[index, names] = _choices(linears, gram, weights[index, names])
        tell(0.5 * (index + 1) / len(blocks_of(model)))
    chosen = _allocate(choices, before, target_parameters)
    for index, block, grams in _walk(model, rows):
        for names, gram in grams.items():
            rank = choices[index, names].ranks[chosen[index, names]]
            if rank is not None:
                _split(block, names, gram, rank)
        tell(0.5 + 0.5 * (index + 1) / len(blocks_of(model)))
    ranks = {
        f"model.layers.{index}.{name}": rank
        for (index, names), place in chosen.items()
        if (rank := choices[index, names].ranks[place]) is not None
        for name in names
    }
    expected = sum(choices[product].losses[place] for product, place in chosen.items())
    return Decomposed(before, count_parameters(model), ranks, expected)


def whole_state(model: nn.Module) -> dict[str, Tensor]:
    """Return a model's weights under the names it had before, factors multiplied."""
    state = dict(model.state_dict())
    for name, module in model.named_modules():
        if isinstance(module, LowRank):
            state = {key: v for key, v in state.items() if not key.startswith(f"{name}.")}
            state[f"{name}.weight"] = module.product()
            if module.up.bias is not None:
                state[f"{name}.bias"] = module.up.bias
    return state


def best_factors(weight: Tensor, gram: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return the two factors that change a layer's outputs least.

    Args:
        weight: Shape (outputs, inputs).
        gram: Sum of the outer products of its inputs, shape (inputs, inputs).
        rank: Of the product.

    Returns:
        ``up`` of shape (outputs, rank) and ``down`` of shape (rank, inputs), float64.
    """
    wide = weight.double()
    if weight.shape[0] <= weight.shape[1]:
        _, vectors = torch.linalg.eigh(wide @ gram.double() @ wide.T)
        up = vectors[:, -rank:].flip(1)
    else:
        # The same directions, found on the smaller side.
        root = _root(gram)
        _, vectors = torch.linalg.eigh(root.T @ (wide.T @ wide) @ root)
        up = torch.linalg.qr(wide @ root @ vectors[:, -rank:].flip(1)).Q
    return up, up.T @ wide


def _root(gram: Tensor) -> Tensor:
    """Return a matrix whose product with its transpose is a Gram matrix, float64."""
    values, vectors = torch.linalg.eigh(gram.double())
    return vectors * values.clamp(min=0).sqrt()


def _split(block: nn.Module, names: Sequence[str], gram: Tensor, rank: int) -> None:
    """Put factors in place of the layers of one product."""
    linears = [linear_of(block, name) for name in names]
    joined = torch.cat([linear.weight.data for linear in linears])
    up, down = best_factors(joined, gram, rank)
    first = _linear(down, None, joined.dtype)
    parts = up.split([linear.out_features for linear in linears])
    for name, linear, part in zip(names, linears, parts, strict=True):
        block.set_submodule(name, LowRank(first, _linear(part, linear.bias, joined.dtype)))


def _linear(weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> nn.Linear:
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    made.weight = nn.Parameter(weight.to(dtype).contiguous())
    if bias is not None:
        made.bias = nn.Parameter(bias.detach().clone())
    return made


def _choices(linears: Sequence[nn.Linear], gram: Tensor, sensitivity: float) -> _Choices:
    """Return what one product can become, and what that loses in nats a token."""
    weight = torch.cat([linear.weight.data for linear in linears]).double()
    num_outputs, num_inputs = weight.shape
    # The same values on the smaller side.
    if num_outputs <= num_inputs:
        lost = torch.linalg.eigvalsh(weight @ gram.double() @ weight.T)
    else:
        root = _root(gram)
        lost = torch.linalg.eigvalsh(root.T @ (weight.T @ weight) @ root)
    # Of rank r, what the smallest eigenvalues hold is lost.
    tails = lost.clamp(min=0).flip(0).cumsum(0)
    full = min(num_outputs, num_inputs)
    ranks: list[int | None] = [None]
    sizes, losses = [num_outputs * num_inputs], [0.0]
    least = max(RANK_STEP, math.ceil(_MIN_RANK_SHARE * full / RANK_STEP) * RANK_STEP)
    for rank in range(least, full, RANK_STEP):
        if rank * (num_outputs + num_inputs) < sizes[0]:
            ranks.append(rank)
            sizes.append(rank * (num_outputs + num_inputs))
            losses.append(sensitivity * float(tails[-1] - tails[rank - 1]))
    return _Choices(tuple(ranks), tuple(sizes), tuple(losses))


def _allocate(choices: Mapping[Product, _Choices], before: int, target: int) -> dict[Product, int]:
    """Choose for all products together: the least loss with no more parameters than wanted.

    Each takes what is best at one price of a parameter (Lagrange); the price is found by halving.
    """
    wanted = before - target

    def at(price: float) -> tuple[dict[Product, int], int]:
        chosen = {product: options.best(price) for product, options in choices.items()}
        saved = sum(
            options.sizes[0] - options.sizes[chosen[product]]
            for product, options in choices.items()
        )
        return chosen, saved

    low, high = -60.0, 20.0
    most = at(math.exp(high))[1]
    if most < wanted:
        raise ConfigError(
            f"{target} parameters: of {before}, no fewer than {before - most} can be left by lower "
            "ranks",
            param="target_parameters",
        )
    for _ in range(_NUM_BISECTIONS):
        middle = (low + high) / 2
        low, high = (low, middle) if at(math.exp(middle))[1] >= wanted else (middle, high)
    return at(math.exp(high))[0]


def _sensitivities(model: Any, rows: Sequence[Tensor]) -> dict[Product, float]:
    """Return what a squared error in an output's component costs, in nats a token.

    Half the mean square of the loss's derivative by it, over the number of tokens.
    """
    squares: dict[Product, float] = {}
    handles: list[Any] = []
    for product in _products(model):
        for name in product[1]:

            def note(_: nn.Module, __: Any, grads: Any, product: Product = product) -> None:
                total = float(grads[0].float().square().sum())
                squares[product] = squares.get(product, 0.0) + total

            linear = linear_of(blocks_of(model)[product[0]], name)
            handles.append(linear.register_full_backward_hook(note))
    wanted = [parameter.requires_grad for parameter in model.parameters()]
    model.requires_grad_(False)
    handles.append(
        model.get_input_embeddings().register_forward_hook(lambda _, __, out: out.requires_grad_())
    )
    try:
        for row in torch.cat(list(rows)).split(_BACKWARD_ROWS):
            logits = model(row, use_cache=False).logits[:, :-1].float()
            nn.functional.cross_entropy(
                logits.flatten(0, 1), row[:, 1:].flatten(), reduction="sum"
            ).backward()
    finally:
        for handle in handles:
            handle.remove()
        for parameter, is_wanted in zip(model.parameters(), wanted, strict=True):
            parameter.requires_grad_(is_wanted)
    num_tokens = sum(row.numel() for row in rows)
    return {
        product: 0.5 * total / (num_tokens * _num_outputs(model, product)) / num_tokens
        for product, total in squares.items()
    }


def _num_outputs(model: Any, product: Product) -> int:
    block = blocks_of(model)[product[0]]
    return sum(linear_of(block, name).out_features for name in product[1])


def _products(model: Any) -> Iterator[Product]:
    for index, block in enumerate(blocks_of(model)):
        names = {name for name, part in block.named_modules() if isinstance(part, nn.Linear)}
        yield from ((index, product) for product in _PRODUCTS if names.issuperset(product))


@torch.no_grad()
def _walk(
    model: Any, rows: Sequence[Tensor]
) -> Iterator[tuple[int, nn.Module, dict[tuple[str, ...], Tensor]]]:
    """Yield each block with the Gram matrix of each product's inputs.

    A block may be changed before the next is asked for; that one sees what it gives then.
    """
    blocks = blocks_of(model)
    states, calls = first_inputs(model, blocks[0], rows)
    products = list(_products(model))
    for index, block in enumerate(blocks):
        grams: dict[tuple[str, ...], Tensor] = {}
        handles: list[Any] = []
        for place, names in products:
            if place != index:
                continue
            linear = linear_of(block, names[0])
            total = torch.zeros(linear.in_features, linear.in_features)
            grams[names] = total
            handles.append(linear.register_forward_pre_hook(adder(total)))
        for state, call in zip(states, calls, strict=True):
            run_block(block, state, call)
        for handle in handles:
            handle.remove()
        yield index, block, grams
        states = [run_block(block, state, call) for state, call in zip(states, calls, strict=True)]
