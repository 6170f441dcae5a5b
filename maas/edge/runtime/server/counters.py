"""What a server counts of its own work."""

from dataclasses import dataclass

# Fewer tokens say nothing of speed.
_MIN_TOKENS = 8
_NEWEST_SHARE = 0.2


@dataclass
class Counters:
    """Since the start.

    Attributes:
        num_fallbacks: Requests that the cloud answered.
        decode_tok_s: Of lone answers lately; none while there was none.
    """

    num_requests: int = 0
    num_completion_tokens: int = 0
    num_fallbacks: int = 0
    decode_tok_s: float | None = None

    def answered(self, num_tokens: int, decode_s: float, *, num_choices: int) -> None:
        """Count an answer.

        Args:
            num_tokens: Of all its choices.
            decode_s: From its first token to its last.
            num_choices: Answers side by side.
        """
        self.num_completion_tokens += num_tokens
        if num_choices != 1 or num_tokens < _MIN_TOKENS or decode_s <= 0:
            return
        speed = (num_tokens - 1) / decode_s
        before = speed if self.decode_tok_s is None else self.decode_tok_s
        self.decode_tok_s = before + _NEWEST_SHARE * (speed - before)
