"""What the engine is asked and what it answers; the server knows no more of it than this."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from maas.edge.runtime.engine.pace import Pace

FinishReason = Literal["stop", "length", "cancelled", "error"]


@dataclass(frozen=True)
class SamplingParams:
    """How the tokens of one answer are chosen.

    Attributes:
        max_tokens: At most so many.
        temperature: 0 takes the likeliest token.
        top_k: Of the likeliest so many; 0 of all.
        min_p: Of those at least so likely as this share of the likeliest.
        seed: The same seed draws the same tokens from the same probabilities.
        repetition_penalty: Divides positive and multiplies negative logits of tokens seen, in
            prompt or answer.
        presence_penalty: Taken once from the logits of tokens in the answer.
        frequency_penalty: Taken from them for each time.
        logit_bias: Added to the logits of these tokens.
        stop_token_ids: End the answer beside the model's own end tokens.
        ignore_eos: The model's own end tokens do not end it.
        grammar: What the answer must be, as llguidance writes it (JSON of its top-level grammar).
        num_logprobs: None: no log probabilities; n: of the chosen token and the n likeliest.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict[int, float])
    stop_token_ids: frozenset[int] = frozenset()
    ignore_eos: bool = False
    grammar: str | None = None
    num_logprobs: int | None = None


@dataclass(frozen=True)
class TokenLogprob:
    """Natural log probabilities at one position, before temperature and penalties.

    Attributes:
        logprob: Of the token that was chosen.
        top: The likeliest tokens with theirs, likeliest first.
    """

    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Output:
    """What one step of the engine gave one request.

    Attributes:
        token_ids: The new tokens; several with speculation, none at a bare end. An end token
            is not among them.
        logprobs: One for each token, where asked for.
        finish_reason: Why this is the last output; none if it is not.
        num_cached_tokens: Tokens of the prompt that were not computed again.
        end_token_id: The token that ended the answer, where one did.
        end_logprob: Of that token, where asked for.
        error: What went wrong, where the reason is ``error``.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] | None = None
    finish_reason: FinishReason | None = None
    num_cached_tokens: int = 0
    end_token_id: int | None = None
    end_logprob: TokenLogprob | None = None
    error: str | None = None


@dataclass(frozen=True)
class EngineStats:
    """How busy it is.

    Attributes:
        num_tokens_total: Prompt and answer tokens since the start.
        pace: How much of the time it computes, where there is work.
    """

    num_running: int
    num_waiting: int
    num_tokens_total: int
    kv_cache_usage: float
    pace: Pace = field(default_factory=Pace)


@dataclass(frozen=True)
class ModelInfo:
    """What a bundle holds, as far as its users must know.

    Attributes:
        kv_bytes_per_token: Memory for keys and values; 0: it keeps none.
    """

    max_model_len: int
    vocab_size: int
    eos_token_ids: frozenset[int]
    task: Literal["generate", "embed"] = "generate"
    kv_bytes_per_token: int = 0

    def has_tokens(self, token_ids: Collection[int]) -> bool:
        """Say whether all of these are tokens of its vocabulary."""
        return not token_ids or (min(token_ids) >= 0 and max(token_ids) < self.vocab_size)


OnOutput = Callable[[Output], None]


class Engine(Protocol):
    """The engine as its server sees it. Every method may be called from any thread."""

    info: ModelInfo

    def compile_grammar(self, text: str) -> None:
        """Get a grammar ready, so that what is submitted with it next is queued at once.

        Takes seconds for one that is large.

        Raises:
            CapabilityMissing: The model makes embeddings.
            InvalidRequest: It is none, or too large.
        """
        ...

    def knows_grammar(self, text: str) -> bool:
        """Say, at once, whether a grammar is ready: what was compiled lately is."""
        ...

    def submit(
        self,
        prompt: Sequence[int],
        params: SamplingParams,
        on_output: OnOutput,
        *,
        adapter: str | None = None,
        cache_salt: str = "",
    ) -> int:
        """Queue a request; returns its id at once.

        Args:
            prompt: Its tokens, at least one, fewer than ``info.max_model_len``.
            params: How to choose.
            on_output: Called from the engine's thread, in order, until a finish reason came.
                It must not block.
            adapter: Name of a loaded adapter.
            cache_salt: Prompts with different salts share no cache.

        Raises:
            InvalidRequest: The prompt is empty or too long, a token is none of the vocabulary, or
                the grammar is none.
            LimitExceeded: Too many requests wait.
            NotFound: No adapter has this name.
        """
        ...

    def cancel(self, request_id: int) -> None:
        """End a request with reason ``cancelled``; fine if it is over."""
        ...

    def embed(self, prompts: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """Return embeddings of length one, shape (number of prompts, hidden size).

        Raises:
            CapabilityMissing: The model generates text.
            InvalidRequest: A prompt is empty or too long, or a token is none of the vocabulary.
        """
        ...

    def load_adapter(self, name: str, folder: Path) -> None:
        """Make an adapter answer under a name; doing so twice is fine.

        Raises:
            EngineError: It does not fit this model.
        """
        ...

    def unload_adapter(self, name: str) -> None:
        """Forget an adapter; doing so twice is fine."""
        ...

    def rehearse(self) -> None:
        """Compute the largest steps there are, of the model and each adapter, on nothing.

        Only before anything is asked. Memory is what it is at most then, keys and values aside.
        """
        ...

    @property
    def stats(self) -> EngineStats:
        """How busy it is now."""
        ...

    def close(self) -> None:
        """End all requests with ``cancelled`` and stop."""
        ...
