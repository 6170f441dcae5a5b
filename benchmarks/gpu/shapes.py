"""Model shapes with random weights: the sizes of known models, and a folder vLLM can start from.

Throughput depends on the shapes of the matrices, not on what was learnt, so the benchmark
needs no download. The engine fills the weights itself (``--load-format dummy``): small random
numbers, not zeros, which run faster than real data on some GPUs.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

BF16_BYTES = 2
MAX_POSITION_EMBEDDINGS = 4096


@dataclass(frozen=True)
class ModelShape:
    """A Llama-like decoder: grouped-query attention, gated MLP, no biases.

    Attributes:
        intermediate_size: Width of the gated MLP.
        num_kv_heads: Fewer than ``num_heads`` means grouped-query attention.
        tie_embeddings: The output head is the input embedding.
    """

    name: str
    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    vocab_size: int
    tie_embeddings: bool = False

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_heads

    @property
    def matmul_parameters(self) -> int:
        """Weights that every token is multiplied with: all but the input embedding and norms."""
        queries_and_output = 2 * self.hidden_size * self.num_heads * self.head_dim
        keys_and_values = 2 * self.hidden_size * self.num_kv_heads * self.head_dim
        mlp = 3 * self.hidden_size * self.intermediate_size
        head = self.vocab_size * self.hidden_size
        return self.num_layers * (queries_and_output + keys_and_values + mlp) + head

    @property
    def parameters(self) -> int:
        """All weights."""
        embedding = 0 if self.tie_embeddings else self.vocab_size * self.hidden_size
        norms = (2 * self.num_layers + 1) * self.hidden_size
        return self.matmul_parameters + embedding + norms

    @property
    def kv_bytes_per_token(self) -> int:
        """KV cache of one token in bytes, bf16."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * BF16_BYTES


SHAPES = {
    shape.name: shape
    for shape in (
        ModelShape("llama2-7b", 32, 4096, 11008, 32, 32, 32000),
        ModelShape("llama2-13b", 40, 5120, 13824, 40, 40, 32000),
        ModelShape("llama3-8b", 32, 4096, 14336, 32, 8, 128256),
        # Small enough to try the whole benchmark on processors.
        ModelShape("smollm2-135m", 30, 576, 1536, 9, 3, 49152, tie_embeddings=True),
    )
}


def write_model_dir(shape: ModelShape, folder: Path) -> None:
    """Write config and a tokenizer of as many words as the shape has; no weights."""
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_hidden_layers": shape.num_layers,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "head_dim": shape.head_dim,
        "vocab_size": shape.vocab_size,
        "tie_word_embeddings": shape.tie_embeddings,
        "max_position_embeddings": MAX_POSITION_EMBEDDINGS,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "bos_token_id": 1,
        # No end of sequence, so that every answer has the length that was asked for; the
        # field that would say so in a request is not OpenAI's, and the gateway refuses it.
        "eos_token_id": None,
        "dtype": "bfloat16",
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    words = {f"w{i}": i for i in range(shape.vocab_size)}
    tokenizer = Tokenizer(WordLevel(words, unk_token="w0"))  # noqa: S106 - a word, no secret
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": "w0",
        "bos_token": "w1",
        "model_max_length": MAX_POSITION_EMBEDDINGS,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config), encoding="utf-8")
