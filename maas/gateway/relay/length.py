"""Refuses prompts that are too long before an engine sees them.

A token is at least one byte, so a prompt of fewer bytes than the context is never too long:
the common case costs a comparison. Otherwise tokens are counted, off the event loop and only
as far as the context reaches, so that a huge prompt costs no more than one of full length.
"""

import asyncio
from functools import lru_cache
from pathlib import Path

from tokenizers import Tokenizer

from maas.core.errors import PromptTooLong
from maas.gateway.relay.requests import EngineRequest
from maas.gateway.relay.snapshot import ModelEntry

# What a chat template adds around messages, in tokens; generous, as it only avoids counting.
TEMPLATE_TOKENS = 256
_SLICE_CHARS = 16 * 1024
_PARAMS = {
    "/v1/chat/completions": "messages",
    "/v1/completions": "prompt",
    "/v1/embeddings": "input",
}


@lru_cache(maxsize=32)
def _load_tokenizer(path: Path) -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(path))
    # Embedding models ship with both on: a prompt of any length would count the same.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def count_tokens(path: Path, texts: tuple[str, ...], *, limit: int) -> int:
    """Count tokens, stopping soon after ``limit``."""
    tokenizer = _load_tokenizer(path)
    total = 0
    for text in texts:
        for start in range(0, len(text), _SLICE_CHARS):
            piece = text[start : start + _SLICE_CHARS]
            total += len(tokenizer.encode(piece, add_special_tokens=False).ids)
            if total > limit:
                return total
    return total


def count_added(path: Path) -> int:
    """Return how many tokens a tokenizer puts around a prompt that is not a chat."""
    return _load_tokenizer(path).num_special_tokens_to_add(False)


async def check_length(request: EngineRequest, entry: ModelEntry) -> None:
    """Make sure that prompt and answer fit the model's context.

    Raises:
        PromptTooLong: They do not; the message has the numbers.
    """
    limit = entry.max_model_len
    if limit is None:
        return
    answer = request.max_answer_tokens or 0
    if answer > limit:
        raise PromptTooLong(
            f"max_tokens {answer} is over this model's context of {limit} tokens",
            param="max_tokens",
        )
    # Of several prompts each has the context to itself: the longest one decides.
    num_prompt_tokens = max(request.prompt_lengths, default=0)
    if num_prompt_tokens + request.prompt_bytes + answer + TEMPLATE_TOKENS <= limit:
        return
    path = entry.facts.tokenizer_path
    if path is not None and request.texts and path.exists():
        texts = request.texts if request.is_one_prompt else (max(request.texts, key=len),)
        num_prompt_tokens += await asyncio.to_thread(count_tokens, path, texts, limit=limit)
    if num_prompt_tokens + answer > limit:
        raise PromptTooLong(
            f"the prompt has {_at_least(num_prompt_tokens, limit)} tokens"
            + (f" and max_tokens is {answer}" if answer else "")
            + f"; this model's context is {limit} tokens together",
            param=_PARAMS[request.path],
        )


def _at_least(count: int, limit: int) -> str:
    return f"over {limit}" if count > limit else str(count)
