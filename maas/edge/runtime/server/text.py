"""From tokens to text, as they come: no half characters, no part of a stop string."""

from collections.abc import Sequence

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream


class TextStream:
    """The text of one answer.

    Args:
        tokenizer: The model's.
        stops: The answer ends before any of these.

    Attributes:
        num_chars: Of all that was decoded, shown or not.
        offsets: Where in it each token begins; those of one character begin together.
    """

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self._decoder = DecodeStream(skip_special_tokens=True)
        self._stops = tuple(stops)
        self._held = ""
        self.is_stopped = False
        self.num_chars = 0
        self.offsets: list[int] = []

    def push(self, tokens: Sequence[int]) -> str:
        """Return the text that may be shown now. After a stop string there is none."""
        for token in tokens:
            self.offsets.append(self.num_chars)
            # Nothing while a character is not whole.
            text = self._decoder.step(self._tokenizer, token) or ""
            self.num_chars += len(text)
            self._held += text
        return self._release()

    def flush(self) -> str:
        """Return what was held back, at the answer's end."""
        text, self._held = ("" if self.is_stopped else self._held), ""
        return text

    def _release(self) -> str:
        if self.is_stopped:
            return ""
        ends = [place for stop in self._stops if (place := self._held.find(stop)) >= 0]
        if ends:
            self.is_stopped = True
            text, self._held = self._held[: min(ends)], ""
            return text
        keep = max((overlap(self._held, stop) for stop in self._stops), default=0)
        text = self._held[: len(self._held) - keep]
        self._held = self._held[len(text) :]
        return text


def overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of a text that a stop string begins with."""
    for size in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0
