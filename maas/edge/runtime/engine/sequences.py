"""A request on its way through the engine."""

import logging
from collections.abc import Sequence as Tokens

import numpy as np
from numpy.typing import NDArray

from maas.edge.runtime.engine.contract import (
    FinishReason,
    OnOutput,
    Output,
    SamplingParams,
    TokenLogprob,
)
from maas.edge.runtime.engine.drafts import PromptLookup
from maas.edge.runtime.engine.sampling import Chooser

log = logging.getLogger(__name__)


class Sequence:
    """One request: its tokens, how far they are computed, what was told of them.

    Args:
        request_id: Its name.
        prompt: Its tokens.
        params: How to choose the next ones.
        on_output: Who is told.
        chooser: Chooses.
        adapter: Whose weights.
        cache_salt: Whose prefix cache.
        max_draft_tokens: Guesses a step.
    """

    def __init__(  # noqa: PLR0913 - all but three are keywords
        self,
        request_id: int,
        prompt: Tokens[int],
        params: SamplingParams,
        *,
        on_output: OnOutput,
        chooser: Chooser,
        adapter: str | None,
        cache_salt: str,
        max_draft_tokens: int,
    ) -> None:
        self.request_id = request_id
        self.params = params
        self.adapter = adapter
        self.cache_salt = cache_salt
        self.tokens = list(prompt)
        self.num_prompt_tokens = len(prompt)
        self.num_computed = 0
        self.num_cached_tokens = 0
        self.finish_reason: FinishReason | None = None
        self.drafts = PromptLookup(max_draft_tokens)
        self._chooser = chooser
        self._on_output = on_output

    @property
    def num_new(self) -> int:
        """Tokens of the answer so far."""
        return len(self.tokens) - self.num_prompt_tokens

    @property
    def is_prefilled(self) -> bool:
        """Whether only its newest token is not computed yet."""
        return self.num_computed >= len(self.tokens) - 1 and self.num_new > 0

    @property
    def array(self) -> NDArray[np.int64]:
        """All its tokens."""
        return np.array(self.tokens, np.int64)

    def take(
        self, rows: NDArray[np.float32], drafted: Tokens[int], *, eos: frozenset[int], limit: int
    ) -> int:
        """Choose tokens from logits and tell of them; where that fails it alone ends.

        Args:
            rows: Logits after the newest token and after each guess, shape (1 + guesses, vocab).
            drafted: The guesses.
            eos: The model's end tokens.
            limit: Positions there are.

        Returns:
            How many tokens were chosen, an end token included.
        """
        told: list[int] = []
        logprobs: list[TokenLogprob] = []
        end: tuple[int, TokenLogprob | None] | None = None
        error: str | None = None
        num_chosen = 0
        for index, row in enumerate(rows):
            try:
                token, logprob = self._chooser.choose(row)
            except Exception as failure:
                # Others run beside it, and nothing of theirs is wrong.
                log.exception("choosing a token of request %d failed", self.request_id)
                self.finish_reason, error = "error", f"choosing a token failed: {failure}"
                break
            num_chosen += 1
            if self._ends(token, eos):
                self.finish_reason, end = "stop", (token, logprob)
                break
            self.tokens.append(token)
            told.append(token)
            if logprob is not None:
                logprobs.append(logprob)
            if self._chooser.is_complete:
                self.finish_reason = "stop"
            elif self.num_new >= self.params.max_tokens or len(self.tokens) >= limit:
                self.finish_reason = "length"
            is_guessed = index < len(drafted) and drafted[index] == token
            if self.finish_reason or not is_guessed:
                break
        self._tell(tuple(told), tuple(logprobs), end, error)
        return num_chosen

    def end(self, reason: FinishReason, error: str | None = None) -> None:
        """End it from outside."""
        if self.finish_reason is None:
            self.finish_reason = reason
            self._on_output(
                Output((), None, reason, num_cached_tokens=self.num_cached_tokens, error=error)
            )

    def _ends(self, token: int, eos: frozenset[int]) -> bool:
        return token in self.params.stop_token_ids or (token in eos and not self.params.ignore_eos)

    def _tell(
        self,
        tokens: tuple[int, ...],
        logprobs: tuple[TokenLogprob, ...],
        end: tuple[int, TokenLogprob | None] | None,
        error: str | None,
    ) -> None:
        asked = self.params.num_logprobs is not None
        self._on_output(
            Output(
                tokens,
                logprobs if asked else None,
                self.finish_reason,
                num_cached_tokens=self.num_cached_tokens,
                end_token_id=end[0] if end else None,
                end_logprob=end[1] if end else None,
                error=error,
            )
        )
