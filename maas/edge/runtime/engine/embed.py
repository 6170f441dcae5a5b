"""Embeddings with an encoder's graph: the mean, or the first, of its last hidden states."""

import json
import threading
import time
from collections.abc import Sequence as Tokens
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maas.core.errors import (
    CapabilityMissing,
    ConfigError,
    EngineError,
    InvalidRequest,
    PromptTooLong,
)
from maas.edge.runtime.engine.contract import EngineStats, ModelInfo, OnOutput, SamplingParams
from maas.edge.runtime.engine.model import open_session
from maas.edge.runtime.engine.options import EngineOptions
from maas.edge.runtime.engine.pace import pause_s

CONFIG = "embed_config.json"
_MAX_BATCH = 16
_SMALL = 1e-9


def is_embedding(folder: Path) -> bool:
    """Say whether a folder holds an encoder."""
    return (folder / CONFIG).exists()


class EmbedEngine:
    """Embeds texts with a bundle of an encoder.

    Args:
        folder: The unpacked bundle.
        options: Threads and pace.
    """

    def __init__(self, folder: Path, options: EngineOptions) -> None:
        self._pace = options.pace
        try:
            config: dict[str, Any] = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
            self._pooling = str(config["pooling"])
            max_model_len = int(config["max_model_len"])
            vocab_size = int(config["vocab_size"])
        except (OSError, ValueError, KeyError) as error:
            raise ConfigError(f"{folder / CONFIG}: cannot be read: {error!r}") from error
        self.info = ModelInfo(max_model_len, vocab_size, frozenset(), "embed")
        self._session = open_session(folder / "model.onnx", options)
        self._inputs = {item.name for item in self._session.get_inputs()}
        self._lock = threading.Lock()
        self._num_tokens = 0
        self._num_running = 0
        self._pauses_until = 0.0
        self._is_closed = threading.Event()

    def compile_grammar(self, text: str) -> None:  # noqa: ARG002 - the contract's
        """Refuse.

        Raises:
            CapabilityMissing: Always: the model makes embeddings.
        """
        raise CapabilityMissing("this model makes embeddings; it generates no text")

    def knows_grammar(self, text: str) -> bool:  # noqa: ARG002 - the contract's
        """Say that it does not."""
        return False

    def submit(
        self,
        prompt: Tokens[int],  # noqa: ARG002
        params: SamplingParams,  # noqa: ARG002
        on_output: OnOutput,  # noqa: ARG002
        *,
        adapter: str | None = None,  # noqa: ARG002
        cache_salt: str = "",  # noqa: ARG002
    ) -> int:
        """Refuse.

        Raises:
            CapabilityMissing: Always: the model makes embeddings.
        """
        raise CapabilityMissing("this model makes embeddings; it generates no text")

    def cancel(self, request_id: int) -> None:
        """Do nothing: there are no requests."""

    def embed(self, prompts: Tokens[Tokens[int]]) -> NDArray[np.float32]:
        """Return embeddings of length one, shape (number of prompts, hidden size).

        Raises:
            InvalidRequest: A prompt is empty, or a token is none of the vocabulary.
            PromptTooLong: One has more tokens than the model reads.
            EngineError: onnxruntime failed.
        """
        for prompt in prompts:
            if not prompt:
                raise InvalidRequest("an input is empty", param="input")
            if not self.info.has_tokens(prompt):
                raise InvalidRequest(
                    f"input: token ids are below {self.info.vocab_size}", param="input"
                )
            if len(prompt) > self.info.max_model_len:
                raise PromptTooLong(
                    f"an input has {len(prompt)} tokens; the model reads {self.info.max_model_len}",
                    param="input",
                )
        # Prompts of a like length lie in one batch: less padding is computed.
        order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
        vectors: list[NDArray[np.float32]] = [np.empty(0, np.float32)] * len(prompts)
        for start in range(0, len(order), _MAX_BATCH):
            part = order[start : start + _MAX_BATCH]
            with self._lock:
                started = self._wait()
                self._num_running = len(part)
                for index, vector in zip(part, self._run([prompts[i] for i in part]), strict=True):
                    vectors[index] = vector
                self._num_running = 0
                self._num_tokens += sum(len(prompts[i]) for i in part)
                self._pause_after(time.perf_counter() - started)
        return np.stack(vectors)

    def load_adapter(self, name: str, folder: Path) -> None:  # noqa: ARG002 - the contract's
        """Refuse.

        Raises:
            EngineError: Always.
        """
        raise EngineError("a model of embeddings takes no adapters")

    def unload_adapter(self, name: str) -> None:
        """Do nothing: there are none."""

    def rehearse(self) -> None:
        """Compute the largest batch there is, on nothing; memory is what it is at most then."""
        self.embed([[0] * self.info.max_model_len] * _MAX_BATCH)

    @property
    def stats(self) -> EngineStats:
        """How busy it is now."""
        return EngineStats(self._num_running, 0, self._num_tokens, 0.0, self._pace())

    def close(self) -> None:
        """Pause no more; no thread runs."""
        self._is_closed.set()

    def _wait(self) -> float:
        """Wait until the pause is over; return when that was."""
        now = time.perf_counter()
        if now >= self._pauses_until:
            return now
        self._is_closed.wait(self._pauses_until - now)
        return time.perf_counter()

    def _pause_after(self, step_s: float) -> None:
        """Have the next batch wait, not the answers that are there."""
        share = self._pace().share
        if share < 1.0:
            self._pauses_until = time.perf_counter() + pause_s(step_s, share)

    def _run(self, prompts: Tokens[Tokens[int]]) -> NDArray[np.float32]:
        length = max(map(len, prompts))
        ids = np.zeros((len(prompts), length), np.int64)
        mask = np.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, : len(prompt)] = prompt
            mask[row, : len(prompt)] = 1
        feeds = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        read = {name: value for name, value in feeds.items() if name in self._inputs}
        try:
            outputs: Any = self._session.run(None, read)
        except Exception as error:
            # onnxruntime's exceptions share no base but this one.
            raise EngineError(f"the engine failed: {error}") from error
        states: NDArray[np.float32] = outputs[0]
        if self._pooling == "cls":
            vectors = states[:, 0]
        else:
            weights = mask[..., None].astype(np.float32)
            vectors = (states * weights).sum(1) / weights.sum(1)
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        return (vectors / np.maximum(norms, _SMALL)).astype(np.float32)
