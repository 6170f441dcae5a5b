"""The sequences that run on one set of weights: the base, or one adapter.

Slots are dense: the sequences that decode lie in the first ones, side by side, so that one run
takes them all; the one whose prompt is being computed, if any, lies behind them.
"""

from collections.abc import Iterable

import numpy as np

from maas.edge.runtime.engine.model import SlotCache
from maas.edge.runtime.engine.prefixes import MIN_SHARED, PrefixCache
from maas.edge.runtime.engine.sequences import Sequence

# While others decode, a prompt is computed in parts as long as a few of their steps.
_SHARED_CHUNK = 64


class Lane:
    """Runs sequences on one set of weights.

    Args:
        name: Tells its prefixes from those of other lanes.
        cache: Its slots.
        prefixes: Of all lanes.
    """

    def __init__(self, name: str, cache: SlotCache, prefixes: PrefixCache) -> None:
        self.name = name
        self.sequences: list[Sequence] = []
        self._cache = cache
        self._prefixes = prefixes

    @property
    def num_positions(self) -> int:
        """Positions a sequence can have."""
        return self._cache.num_positions

    @property
    def prefilling(self) -> Sequence | None:
        """The sequence whose prompt is being computed."""
        last = self.sequences[-1] if self.sequences else None
        return None if last is None or last.is_prefilled else last

    @property
    def decoding(self) -> list[Sequence]:
        """The sequences that get a token each step, in the order of their slots."""
        return self.sequences[:-1] if self.prefilling else self.sequences

    def add(self, sequence: Sequence) -> None:
        """Take a sequence in behind the others; what is known of its prompt is copied."""
        slot = len(self.sequences)
        tokens = sequence.array
        length = 0
        # One product of many rows rounds otherwise than many of one: with a seed each token is
        # computed the same way each time, with nothing remembered and nothing guessed.
        if sequence.params.seed is None:
            length, kept = self._prefixes.find(self._space(sequence), tokens)
            if kept is not None:
                self._cache.write(slot, kept, length)
        sequence.num_computed = length
        if not sequence.num_new:
            sequence.num_cached_tokens = length
        self.sequences.append(sequence)

    def prefill(self, *, is_shared: bool) -> int:
        """Compute a part of the newest prompt; its last part gives the first token.

        Args:
            is_shared: Whether others wait for their next token meanwhile.

        Returns:
            How many tokens were computed.
        """
        sequence = self.sequences[-1]
        size = self._cache.model.max_chunk
        size = min(size, _SHARED_CHUNK) if is_shared else size
        start = sequence.num_computed
        part = np.array(sequence.tokens[start : start + size], np.int64)
        rows = self._cache.extend(len(self.sequences) - 1, part, start)
        sequence.num_computed += len(part)
        if sequence.num_computed == len(sequence.tokens):
            self._keep(sequence, len(self.sequences) - 1)
            self._take(sequence, rows[-1:], ())
        return len(part)

    def decode(self, *, may_draft: bool) -> int:
        """Give each decoding sequence its next token, or a lone one several.

        Returns:
            How many tokens came of it.
        """
        decoding = self.decoding
        if may_draft and len(decoding) == 1 and decoding[0].params.seed is None:
            sequence = decoding[0]
            room = self.num_positions - len(sequence.tokens)
            drafted = sequence.drafts.propose(sequence.tokens)[: max(room, 0)]
            if drafted:
                return self._check(sequence, drafted)
        tokens = np.array([item.tokens[-1] for item in decoding], np.int64)
        lengths = np.array([item.num_computed for item in decoding], np.int64)
        rows = self._cache.step(tokens, lengths)
        for index, sequence in enumerate(decoding):
            sequence.num_computed += 1
            self._take(sequence, rows[index : index + 1], ())
        return len(decoding)

    def remove(self, sequences: Iterable[Sequence]) -> None:
        """Let sequences go, and close the gaps."""
        for sequence in tuple(sequences):
            self._close(self.sequences.index(sequence))

    def rehearse(self) -> None:
        """Compute the largest steps there are, while there is no sequence."""
        self._cache.rehearse()

    def clear(self) -> None:
        """Forget all sequences, and what a failed run left of them."""
        self.sequences.clear()
        self._cache.empty_all()

    def _check(self, sequence: Sequence, drafted: tuple[int, ...]) -> int:
        """Compute the newest token and the guesses in one run; keep what proves right."""
        tokens = np.array((sequence.tokens[-1], *drafted), np.int64)
        start = sequence.num_computed
        rows = self._cache.extend(0, tokens, start)
        num_chosen = self._take(sequence, rows, drafted)
        # What was computed of guesses that proved wrong is written over.
        sequence.num_computed = start + num_chosen
        sequence.drafts.learn(num_chosen)
        return num_chosen

    def _take(self, sequence: Sequence, rows: np.ndarray, drafted: tuple[int, ...]) -> int:
        eos = self._cache.model.config.eos_token_ids
        return sequence.take(rows, drafted, eos=eos, limit=self.num_positions)

    def _close(self, slot: int) -> None:
        sequence = self.sequences[slot]
        self._keep(sequence, slot)
        num_decoding = len(self.decoding)
        # The last that decodes fills the gap, and what is behind it moves up.
        last = num_decoding - 1
        if slot < last:
            self._move(last, slot)
        if slot < num_decoding < len(self.sequences):
            self._move(num_decoding, last)
        self.sequences.pop()
        if slot == len(self.sequences):
            self._cache.empty(slot)

    def _move(self, source: int, target: int) -> None:
        sequence = self.sequences[source]
        self._cache.move(source, target, sequence.num_computed)
        self.sequences[target] = sequence

    def _keep(self, sequence: Sequence, slot: int) -> None:
        """Keep what was computed of a sequence for others that begin like it."""
        length = min(sequence.num_computed, len(sequence.tokens))
        tokens = sequence.array[:length]
        if length >= MIN_SHARED:
            size = length * self._cache.model.kv_bytes_per_token
            self._prefixes.put(
                self._space(sequence), tokens, size, lambda: self._cache.read(slot, length)
            )

    def _space(self, sequence: Sequence) -> str:
        return f"{self.name}\0{sequence.cache_salt}"
