"""What whoever starts the engine decides."""

import os
from dataclasses import dataclass

from maas.edge.runtime.engine.pace import PaceReader, at_full_pace, at_untold_pace


@dataclass(frozen=True)
class EngineOptions:
    """Sizes and habits of one engine.

    Attributes:
        num_threads: Threads that compute; 0 takes the processors this process may use.
        max_num_seqs: Requests computed at a time.
        max_num_waiting: Requests that wait for their turn; more are refused.
        max_model_len: Tokens of prompt and answer together; 0 takes the model's own context.
        kv_cache_bytes: Memory for keys and values of running requests.
        prefix_cache_bytes: Memory for those kept of requests that ended; 0 keeps none.
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
