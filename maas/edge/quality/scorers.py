"""The two sides of a comparison: the original in torch, the bundle in onnxruntime."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from maas.edge.runtime.engine.adapters import read_values
from maas.edge.runtime.engine.model import DecoderModel, SlotCache
from maas.edge.runtime.engine.options import EngineOptions


class Scorer(Protocol):
    """One side."""

    def logits(self, tokens: Sequence[int], num_before: int = 0) -> NDArray[np.float32]:
        """Return the logits after tokens, the first ``num_before`` left out.

        Returns:
            Shape (tokens - num_before, vocabulary).
        """
        ...

    def greedy(self, prompt: Sequence[int], max_tokens: int) -> list[int]:
        """Return the likeliest next tokens, to the answer's end, without it."""
        ...


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
    def greedy(self, prompt: Sequence[int], max_tokens: int) -> list[int]:
        """Return the likeliest next tokens, to the answer's end, without it."""
        ids = torch.tensor([list(prompt)])
        out = self._model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=max_tokens,
            do_sample=False,
            pad_token_id=min(self._eos),
        )
        new = out[0, len(prompt) :].tolist()
        end = next((place for place, token in enumerate(new) if token in self._eos), len(new))
        return new[:end]


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
        ids = np.array(tokens, np.int64)
        parts: list[NDArray[Any]] = []
        for start in range(0, len(ids), self._model.max_chunk):
            part = ids[start : start + self._model.max_chunk]
            rows = self._cache.extend(0, part, start)
            parts.append(rows[max(num_before - start, 0) :].astype(np.float32))
        return np.concatenate(parts)

    def greedy(self, prompt: Sequence[int], max_tokens: int) -> list[int]:
        """Return the likeliest next tokens, to the answer's end, without it."""
        token = int(self.logits(prompt, len(prompt) - 1)[-1].argmax())
        tokens: list[int] = []
        while token not in self._model.config.eos_token_ids and len(tokens) < max_tokens:
            tokens.append(token)
            length = np.array([len(prompt) + len(tokens) - 1])
            rows = self._cache.step(np.array([token]), length)
            token = int(rows[0].argmax())
        return tokens
