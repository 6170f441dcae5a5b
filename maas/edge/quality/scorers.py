"""The two sides of a comparison: the original in torch, the bundle in onnxruntime."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from maas.edge.runtime.engine.adapters import read_values
from maas.edge.runtime.engine.model import DecoderModel, SlotCache
from maas.edge.runtime.engine.options import EngineOptions

# Of one pass of the original: its logits are in memory for each of them.
_MAX_BATCH_TOKENS = 1024


@dataclass(frozen=True)
class Text:
    """A text whose end is scored.

    Attributes:
        start: Place of the end's first token.
    """

    tokens: tuple[int, ...]
    start: int


class Scorer(Protocol):
    """One side."""

    def logits(self, tokens: Sequence[int], num_before: int = 0) -> NDArray[np.float32]:
        """Return the logits after tokens, the first ``num_before`` left out.

        Returns:
            Shape (tokens - num_before, vocabulary).
        """
        ...

    def ends(self, texts: Sequence[Text]) -> list[float]:
        """Return how likely each text's end is: the mean log-probability of its tokens."""
        ...

    def greedy(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> list[list[int]]:
        """Return each prompt's likeliest next tokens, to the answer's end, without it."""
        ...


def log_softmax(rows: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return log-probabilities of logits, shape (tokens, vocabulary)."""
    wide = rows.astype(np.float64)
    wide -= wide.max(-1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(-1, keepdims=True))


def mean_logprob(rows: NDArray[np.float32], tokens: Sequence[int]) -> float:
    """Return the mean log-probability of tokens, each given the logits before it."""
    return float(log_softmax(rows)[np.arange(len(tokens)), list(tokens)].mean())


class TorchScorer:
    """A model from transformers.

    Args:
        model: Loaded.
        eos: Its end tokens.
    """

    def __init__(self, model: Any, eos: frozenset[int]) -> None:
        self._model = model
        self._eos = eos

    @torch.no_grad()
    def logits(self, tokens: Sequence[int], num_before: int = 0) -> NDArray[np.float32]:
        """Return the logits after tokens, the first ``num_before`` left out."""
        rows = self._model(torch.tensor([list(tokens)]), use_cache=False).logits[0]
        return rows[num_before:].float().numpy()

    @torch.no_grad()
    def ends(self, texts: Sequence[Text]) -> list[float]:
        """Return how likely each text's end is: the mean log-probability of its tokens."""
        scores = [0.0] * len(texts)
        # Endings of one token differ in what is read off, not in what is computed.
        alike: dict[tuple[int, ...], list[int]] = {}
        for place, text in enumerate(texts):
            alike.setdefault(text.tokens[:-1], []).append(place)
        inputs = list(alike)
        for batch in _batches([len(tokens) for tokens in inputs]):
            width = max(len(inputs[place]) for place in batch)
            # What stands after a text changes nothing before it.
            ids = torch.zeros(len(batch), width, dtype=torch.long)
            for row, place in enumerate(batch):
                ids[row, : len(inputs[place])] = torch.tensor(inputs[place])
            logits = self._model(ids, use_cache=False).logits
            for row, place in enumerate(batch):
                for text in alike[inputs[place]]:
                    scores[text] = _score(texts[text], logits[row, : len(inputs[place])])
        return scores

    @torch.no_grad()
    def greedy(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> list[list[int]]:
        """Return each prompt's likeliest next tokens, to the answer's end, without it."""
        width = max((len(prompt) for prompt in prompts), default=0)
        filler = min(self._eos)
        ids = torch.tensor([[filler] * (width - len(prompt)) + [*prompt] for prompt in prompts])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        out = self._model.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=max_tokens,
            do_sample=False,
            pad_token_id=filler,
        )
        return [self._until_end(row) for row in out[:, width:].tolist()]

    def _until_end(self, new: list[int]) -> list[int]:
        end = next((place for place, token in enumerate(new) if token in self._eos), len(new))
        return new[:end]


def _score(text: Text, logits: Tensor) -> float:
    return mean_logprob(logits[text.start - 1 :].float().numpy(), text.tokens[text.start :])


def _batches(lengths: Sequence[int]) -> list[list[int]]:
    """Return places of texts by batches of like length, none of too many tokens."""
    batches: list[list[int]] = []
    # From the longest on: the first of a batch is as wide as it gets.
    for place in sorted(range(len(lengths)), key=lambda place: -lengths[place]):
        width = lengths[batches[-1][0]] if batches else 0
        if not batches or (len(batches[-1]) + 1) * width > _MAX_BATCH_TOKENS:
            batches.append([])
        batches[-1].append(place)
    return batches


def _num_shared(left: Sequence[int], right: Sequence[int]) -> int:
    """Return how many tokens two texts begin with alike."""
    pairs = zip(left, right, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(left), len(right)))


class OnnxScorer:
    """A bundle, computed the way the engine does: prompts in parts, answers token by token.

    Args:
        folder: Unpacked.
        options: Threads.
        max_length: Tokens of the longest text.
        adapter_dir: Folder of the adapter it is asked with.
    """

    def __init__(
        self,
        folder: Path,
        options: EngineOptions,
        max_length: int = 1024,
        *,
        adapter_dir: Path | None = None,
    ) -> None:
        self._model = DecoderModel(folder, options)
        adapter = None if adapter_dir is None else read_values(adapter_dir, self._model.session)
        self._cache = SlotCache(self._model, 1, max_length, adapter)

    def logits(self, tokens: Sequence[int], num_before: int = 0) -> NDArray[np.float32]:
        """Return the logits after tokens, the first ``num_before`` left out."""
        return self._extend(tokens, 0, num_before)

    def ends(self, texts: Sequence[Text]) -> list[float]:
        """Return how likely each text's end is: the mean log-probability of its tokens.

        What a text begins with as the one before it does is not computed again.
        """
        scores: list[float] = []
        known: tuple[int, ...] = ()
        start, rows = 0, np.empty((0, 0), np.float32)
        for text in texts:
            inputs = text.tokens[:-1]
            if inputs != known or text.start <= start:
                start = min(_num_shared(known, inputs), text.start - 1)
                rows = self._extend(inputs[start:], start)
                known = inputs
            scores.append(mean_logprob(rows[text.start - 1 - start :], text.tokens[text.start :]))
        return scores

    def greedy(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> list[list[int]]:
        """Return each prompt's likeliest next tokens, to the answer's end, without it."""
        return [self._answer(prompt, max_tokens) for prompt in prompts]

    def _answer(self, prompt: Sequence[int], max_tokens: int) -> list[int]:
        token = int(self.logits(prompt, len(prompt) - 1)[-1].argmax())
        tokens: list[int] = []
        while token not in self._model.config.eos_token_ids and len(tokens) < max_tokens:
            tokens.append(token)
            length = np.array([len(prompt) + len(tokens) - 1])
            rows = self._cache.step(np.array([token]), length)
            token = int(rows[0].argmax())
        return tokens

    def _extend(
        self, tokens: Sequence[int], num_known: int, num_before: int = 0
    ) -> NDArray[np.float32]:
        """Compute tokens behind those that are known; the first ``num_before`` are left out."""
        ids = np.array(tokens, np.int64)
        parts: list[NDArray[Any]] = []
        for start in range(0, len(ids), self._model.max_chunk):
            part = ids[start : start + self._model.max_chunk]
            rows = self._cache.extend(0, part, num_known + start)
            parts.append(rows[max(num_before - start, 0) :].astype(np.float32))
        return np.concatenate(parts)
