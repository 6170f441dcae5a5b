"""What an answer must be: a JSON schema, a regular expression, a grammar; by llguidance.

Compiling lets go of Python's lock, and ends: what is long or grows beyond these bounds is refused.
What has been compiled is remembered.
"""

import threading
from collections import OrderedDict
from pathlib import Path

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from numpy.typing import NDArray

from maas.core.errors import ConfigError, EngineError, InvalidRequest

_MAX_BYTES = 256 << 10
_MAX_REMEMBERED = 32
# A tenth, and a fifth, of what llguidance allows: it would take half a minute, and half a gigabyte.
_LIMITS = LLParserLimits(max_grammar_size=50_000, max_lexer_states=50_000)
# Most that go over a bound on the way do so soon: better refused than half an answer.
_NUM_TRIED = 4
_BACKTRACE = "\n<backtrace>"


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
        """Take away the tokens that may not come next, in place.

        Raises:
            EngineError: The grammar went over a bound on the way.
        """
        self._matcher.unsafe_compute_mask_ptr(self._mask.ctypes.data, self._mask.nbytes)
        self._check()
        bits = np.unpackbits(self._mask.view(np.uint8), bitorder="little")[: self._vocab_size]
        logits[bits == 0] = -np.inf

    def take(self, token: int) -> None:
        """Go on past a token.

        Raises:
            EngineError: The grammar went over a bound on the way.
        """
        self._matcher.consume_token(token)
        self._check()

    @property
    def is_complete(self) -> bool:
        """Whether nothing may follow."""
        return self._matcher.is_stopped()

    def _check(self) -> None:
        # Or it would look like an answer that is complete.
        if self._matcher.is_error():
            raise EngineError(f"the grammar cannot be followed: {_error_of(self._matcher)}")


class GrammarCompiler:
    """Makes grammars for one tokenizer. May be used from any thread.

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
        # At their starts, the one that was asked for last last.
        self._compiled: OrderedDict[str, LLMatcher] = OrderedDict()
        # Held for moments: who asks what is known does not wait.
        self._lock = threading.Lock()
        self._tokenizer_lock = threading.Lock()

    def knows(self, text: str) -> bool:
        """Say, at once, whether a grammar was asked for lately."""
        with self._lock:
            return text in self._compiled

    def compile(self, text: str) -> Grammar:
        """Compile a grammar; at once where it was asked for lately.

        Raises:
            InvalidRequest: It is none, or too large; the message says why.
        """
        with self._lock:
            matcher = self._compiled.get(text)
        if matcher is None:
            matcher = self._made(text)
        with self._lock:
            self._compiled[text] = matcher
            self._compiled.move_to_end(text)
            if len(self._compiled) > _MAX_REMEMBERED:
                self._compiled.popitem(last=False)
        return Grammar(matcher.deep_copy(), self._vocab_size)

    def _made(self, text: str) -> LLMatcher:
        if len(text) > _MAX_BYTES:
            raise _refusal(f"it has {len(text)} characters; at most {_MAX_BYTES} may be")
        matcher = LLMatcher(self._known(), text, log_level=0, limits=_LIMITS)
        tried = matcher.deep_copy()
        _follow(tried, _NUM_TRIED)
        if tried.is_error():
            raise _refusal(_error_of(tried))
        return matcher

    def _known(self) -> LLTokenizer:
        with self._tokenizer_lock:
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


def _follow(matcher: LLMatcher, num_tokens: int) -> None:
    """Go on by the first token that may come, until its end or an error."""
    for _ in range(num_tokens):
        mask = np.frombuffer(matcher.compute_bitmask(), np.uint8)
        bits = np.unpackbits(mask, bitorder="little")
        if matcher.is_stopped() or not bits.any():
            return
        matcher.consume_token(int(bits.argmax()))


def _refusal(why: str) -> InvalidRequest:
    return InvalidRequest(f"the grammar is refused: {why}", param="response_format")


def _error_of(matcher: LLMatcher) -> str:
    return matcher.get_error().partition(_BACKTRACE)[0]
