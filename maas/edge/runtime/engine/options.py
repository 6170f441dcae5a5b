"""What whoever starts the engine decides."""

import os
from dataclasses import dataclass

from maas.edge.runtime.engine.pace import PaceReader, at_full_pace, at_untold_pace

# Keys and values of fewer positions are worth no start.
_MIN_TOKENS = 256


@dataclass(frozen=True)
class EngineOptions:
    """Sizes and habits of one engine.

    Attributes:
        num_threads: Threads that compute; 0 takes the processors this process may use.
        max_num_seqs: Requests computed at a time.
        max_num_waiting: Requests that wait for their turn; more are refused.
        max_model_len: Tokens of prompt and answer together; 0 takes the model's own context.
        kv_cache_bytes: Memory for keys and values of running requests: no more of it is ever
            resident, but for a model of whose tokens fewer than 256 would have room.
        prefix_cache_bytes: Memory for those kept of requests that ended, beside the former; 0
            keeps none.
        max_draft_tokens: Tokens guessed from the text itself, checked in one step; 0 guesses none.
        enable_spinning: Threads wait for work without sleeping: a little faster, and warm.
        pace: Asked after each step how much of the time to compute; must be quick.
    """

    num_threads: int = 0
    max_num_seqs: int = 8
    max_num_waiting: int = 1024
    max_model_len: int = 0
    kv_cache_bytes: int = 1 << 30
    prefix_cache_bytes: int = 256 << 20
    max_draft_tokens: int = 4
    enable_spinning: bool = True
    pace: PaceReader = at_full_pace

    @property
    def threads(self) -> int:
        """Threads that compute."""
        return self.num_threads or len(os.sched_getaffinity(0))

    @property
    def may_pause(self) -> bool:
        """Whether there can be pauses between steps."""
        return self.pace not in (at_full_pace, at_untold_pace)


def kv_bound_bytes(options: EngineOptions | None, bytes_per_token: int, max_model_len: int) -> int:
    """Return the memory that keys and values of running requests take at most.

    Args:
        options: Of the engine; none: whatever they are, so much is always allowed.
        bytes_per_token: Of keys and values.
        max_model_len: The model's context.
    """
    least = min(max_model_len, _MIN_TOKENS) * bytes_per_token
    return max(options.kv_cache_bytes, least) if options else least
