"""How large a graph's weights are, before it is built."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maas.edge.shrink.prune import count_parameters, head_dim

# The graph itself, and what it grows by with each block of the model.
_GRAPH_BYTES, _BLOCK_BYTES = 16_000, 12_000
# Manifest, signature, receipt, configuration, and a tar's padding.
_BESIDE_BYTES = 64_000
_SCALE_BYTES = 4
_EMBEDDING_BITS = 8
# A cosine and a sine in float32 for each pair of a head's components.
_POSITION_BYTES = 4


@dataclass(frozen=True)
class Sizes:
    """What of a model is written how.

    Attributes:
        num_body: Parameters of the layers.
        num_head: Of the head.
        num_embedding: Of the embedding, where its weights are not the head's.
        num_blocks: Of the model.
        position_bytes: Of the tables of rotary positions.
    """

    num_body: int
    num_head: int
    num_embedding: int
    num_blocks: int
    position_bytes: int

    @classmethod
    def of(cls, model: Any) -> "Sizes":
        """Return a loaded model's."""
        embedding = model.get_input_embeddings().weight
        head = model.get_output_embeddings().weight
        num_embedding = 0 if head is embedding else embedding.numel()
        num_body = count_parameters(model) - head.numel() - num_embedding
        config = model.config
        positions = _POSITION_BYTES * int(config.max_position_embeddings) * head_dim(config)
        num_blocks = int(config.num_hidden_layers)
        return cls(num_body, head.numel(), num_embedding, num_blocks, positions)

    def graph_bytes(self, body_bits: int, head_bits: int, block_size: int) -> int:
        """Return about what graph and weights take."""
        body = self.num_body * _bytes(body_bits, block_size)
        return math.ceil(body) + self._rest(head_bits, block_size)

    def parameters_within(
        self, size_bytes: int, body_bits: int, head_bits: int, block_size: int
    ) -> int:
        """Return how many parameters may be left so that graph and weights take no more."""
        left = size_bytes - self._rest(head_bits, block_size)
        num_body = max(0, math.floor(left / _bytes(body_bits, block_size)))
        return num_body + self.num_head + self.num_embedding

    def _rest(self, head_bits: int, block_size: int) -> int:
        head = self.num_head * _bytes(head_bits, block_size)
        embedding = self.num_embedding * _bytes(_EMBEDDING_BITS, block_size)
        graph = _GRAPH_BYTES + self.num_blocks * _BLOCK_BYTES
        return math.ceil(head + embedding) + graph + self.position_bytes


def beside_bytes(model_dir: Path, names: Sequence[str]) -> int:
    """Return about what a bundle has beside graph and weights."""
    paths = [model_dir / name for name in names]
    return _BESIDE_BYTES + sum(path.stat().st_size for path in paths if path.exists())


def _bytes(bits: int, block_size: int) -> float:
    return bits / 8 + _SCALE_BYTES / block_size
