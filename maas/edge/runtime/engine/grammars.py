"""What an answer must be: a JSON schema, a regular expression, a grammar; by llguidance."""

from pathlib import Path

import numpy as np
from llguidance import LLMatcher, LLTokenizer
from numpy.typing import NDArray

from maas.core.errors import ConfigError, InvalidRequest


class Grammar:
    """One answer's way through a grammar.

    Args:
        matcher: At its start.
        vocab_size: Of the model.
    """

    def __init__(self, matcher: LLMatcher, vocab_size: int) -> None:
        self._matcher = matcher
        self._mask = np.zeros(-(-vocab_size // 32), np.uint32)
        self._vocab_size = vocab_size

    def restrict(self, logits: NDArray[np.float32]) -> None:
        """Take away the tokens that may not come next, in place."""
        self._matcher.unsafe_compute_mask_ptr(self._mask.ctypes.data, self._mask.nbytes)
        bits = np.unpackbits(self._mask.view(np.uint8), bitorder="little")[: self._vocab_size]
        logits[bits == 0] = -np.inf

    def take(self, token: int) -> None:
        """Go on past a token."""
        self._matcher.consume_token(token)

    @property
    def is_complete(self) -> bool:
        """Whether nothing may follow."""
        return self._matcher.is_stopped()


class GrammarCompiler:
    """Makes grammars for one tokenizer.

    Args:
        tokenizer: Its ``tokenizer.json``.
        vocab_size: Of the model's logits.
        eos_token_id: Ends an answer that is complete.
    """

    def __init__(self, tokenizer: Path, vocab_size: int, eos_token_id: int) -> None:
        self._path = tokenizer
        self._vocab_size = vocab_size
        self._eos_token_id = eos_token_id
        # Made when it is first needed: it takes a tenth of a second.
        self._tokenizer: LLTokenizer | None = None

    def compile(self, text: str) -> Grammar:
        """Compile a grammar.

        Raises:
            InvalidRequest: It is none; the message says why.
        """
        problem = LLMatcher.validate_grammar(text, self._known())
        if problem:
            raise InvalidRequest(f"the grammar is refused: {problem}", param="response_format")
        matcher = LLMatcher(self._known(), text, log_level=0)
        if matcher.is_error():
            raise InvalidRequest(
                f"the grammar is refused: {matcher.get_error()}", param="response_format"
            )
        return Grammar(matcher, self._vocab_size)

    def _known(self) -> LLTokenizer:
        if self._tokenizer is None:
            try:
                self._tokenizer = LLTokenizer(
                    self._path.read_text(encoding="utf-8"),
                    n_vocab=self._vocab_size,
                    eos_token=self._eos_token_id,
                )
            except (OSError, ValueError) as error:
                raise ConfigError(f"{self._path}: not a tokenizer: {error}") from error
        return self._tokenizer
