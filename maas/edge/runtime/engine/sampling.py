"""Chooses the tokens of one answer from logits."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maas.edge.runtime.engine.contract import SamplingParams, TokenLogprob
from maas.edge.runtime.engine.grammars import Grammar

_MIN_TEMPERATURE = 1e-4
# Tokens that hold nearly all of the probability, nearly always.
_FEW = 1024


class Chooser:
    """Chooses one token after another; knows what it chose.

    Args:
        params: How.
        prompt: Tokens before the answer.
        grammar: What the answer must be.
    """

    def __init__(
        self, params: SamplingParams, prompt: Sequence[int], grammar: Grammar | None
    ) -> None:
        self._params = params
        self._grammar = grammar
        self._random = np.random.default_rng(params.seed)
        self._counts: dict[int, int] = {}
        self._seen = set(prompt) if params.repetition_penalty != 1.0 else set[int]()
        self._biased = np.array(list(params.logit_bias), np.int64)
        self._biases = np.array(list(params.logit_bias.values()), np.float32)
        self._is_plain = (
            params.repetition_penalty == 1.0
            and params.presence_penalty == 0.0
            and params.frequency_penalty == 0.0
            and not params.logit_bias
            and grammar is None
        )

    def choose(self, logits: NDArray[Any]) -> tuple[int, TokenLogprob | None]:
        """Choose the next token, and remember it.

        Args:
            logits: Shape (vocabulary,).
        """
        params = self._params
        raw = logits.astype(np.float32, copy=False)
        row = raw if self._is_plain else self._bend(raw.copy())
        token = int(row.argmax()) if params.temperature == 0 else self._draw(row)
        logprob = None if params.num_logprobs is None else _logprob(raw, token, params.num_logprobs)
        self._remember(token)
        return token, logprob

    @property
    def is_complete(self) -> bool:
        """Whether the grammar has its end: nothing may follow."""
        return self._grammar is not None and self._grammar.is_complete

    def _remember(self, token: int) -> None:
        if self._is_plain:
            return
        self._counts[token] = self._counts.get(token, 0) + 1
        if self._params.repetition_penalty != 1.0:
            self._seen.add(token)
        if self._grammar is not None:
            self._grammar.take(token)

    def _bend(self, row: NDArray[np.float32]) -> NDArray[np.float32]:
        params = self._params
        if self._seen:
            seen = np.fromiter(self._seen, np.int64)
            penalty = params.repetition_penalty
            row[seen] = np.where(row[seen] > 0, row[seen] / penalty, row[seen] * penalty)
        if self._counts and (params.presence_penalty or params.frequency_penalty):
            chosen = np.fromiter(self._counts, np.int64)
            counts = np.fromiter(self._counts.values(), np.float32)
            row[chosen] -= params.presence_penalty + params.frequency_penalty * counts
        if len(self._biased):
            row[self._biased] += self._biases
        if self._grammar is not None:
            self._grammar.restrict(row)
        return row

    def _draw(self, row: NDArray[np.float32]) -> int:
        params = self._params
        scaled = (row - row.max()) / max(params.temperature, _MIN_TEMPERATURE)
        weights = np.exp(scaled, dtype=np.float64)
        if params.min_p > 0.0:
            weights[weights < params.min_p] = 0.0
        if params.top_k or params.top_p < 1.0:
            order, weights = _nucleus(weights, params.top_k, params.top_p)
            return int(order[self._place(weights)])
        return self._place(weights)

    def _place(self, weights: NDArray[np.float64]) -> int:
        """Draw a place with these weights."""
        total = np.cumsum(weights)
        place = int(np.searchsorted(total, self._random.random() * total[-1], side="right"))
        return min(place, len(weights) - 1)


def _nucleus(
    weights: NDArray[np.float64], top_k: int, top_p: float
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the tokens that ``top_k`` and ``top_p`` leave, likeliest first, with their weights."""
    # Sorting the whole vocabulary takes as long as a step of a small model.
    order = _best(weights, top_k or _FEW)
    wanted = top_p * (weights[order].sum() if top_k else weights.sum())
    if not top_k and weights[order[:-1]].sum() < wanted:
        order = _best(weights, len(weights))
    best = weights[order]
    # The first whose predecessors already hold top_p goes, with all after it.
    num_kept = max(1, int((np.cumsum(best) - best < wanted).sum()))
    return order[:num_kept], best[:num_kept]


def _best(row: NDArray[Any], size: int) -> NDArray[np.int64]:
    """Return the places of the highest values, highest first."""
    if size >= len(row):
        return np.argsort(-row, kind="stable")
    best = np.argpartition(row, -size)[-size:]
    return best[np.argsort(-row[best], kind="stable")]


def _logprob(raw: NDArray[np.float32], token: int, num_top: int) -> TokenLogprob:
    peak = float(raw.max())
    norm = peak + float(np.log(np.exp(raw - peak, dtype=np.float64).sum()))
    best = _best(raw, num_top) if num_top else np.empty(0, np.int64)
    top = tuple((int(item), float(raw[item]) - norm) for item in best)
    return TokenLogprob(float(raw[token]) - norm, top)
