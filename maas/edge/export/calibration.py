"""Text to calibrate on, written by the model itself: what it says is what it must go on saying.

Source: "LLM-QAT: Data-Free Quantization Aware Training" (Liu et al., 2023, section 3.1): text a
model generates keeps more of it than text it never saw.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from maas.edge.export.attention import grouped_attention

TOPICS = (
    *("volcanoes", "bread", "the French revolution", "Python lists", "gravity", "cats"),
    *("a rainy day", "saving money", "football", "the moon", "how engines work", "Shakespeare"),
    *("healthy food", "a job interview", "trees", "computers", "learning the guitar", "Mars"),
    *("rivers", "a birthday party", "fractions", "whales", "the internet", "painting"),
    *("a lost key", "coffee", "chemistry", "travel in Japan", "sleep", "robots", "friendship"),
    "the history of Rome",
)
FORMS = (
    "Tell me about {}.",
    "Write three short sentences about {}.",
    "Give me a list of facts about {}.",
    "Write a short dialogue about {}.",
    "用中文简单介绍一下 {}",
)
ROW_LENGTH = 256
_MAX_NEW_TOKENS = 160
_TEMPERATURE, _TOP_K = 0.8, 50
# Prompts that are answered together, and about what one of them gives.
_BATCH_PROMPTS, _TOKENS_A_PROMPT = 80, 160


@torch.no_grad()
def write_rows(
    model: Any, tokenizer: Any, *, num_rows: int, seed: int, tell: Callable[[float], None]
) -> Tensor:
    """Have a model write calibration text.

    Args:
        model: From transformers.
        tokenizer: Its own.
        num_rows: How many rows are wanted.
        seed: The same gives the same text.
        tell: Told the share that is done, 0 to 1.

    Returns:
        Token ids, shape (rows, 256), without padding.
    """
    source = torch.Generator().manual_seed(seed)
    # Each form in turn, so that a batch has them all.
    prompts = itertools.cycle(
        FORMS[(place + turn) % len(FORMS)].format(topic)
        for turn in range(len(FORMS))
        for place, topic in enumerate(TOPICS)
    )
    tokens: list[int] = []
    wanted = num_rows * ROW_LENGTH
    with grouped_attention(model):
        while (missing := wanted - len(tokens)) > 0:
            number = min(_BATCH_PROMPTS, -(-missing // _TOKENS_A_PROMPT))
            some = list(itertools.islice(prompts, number))
            tokens += _answers(model, tokenizer, some, source, tell if not tokens else _silent)
    return torch.tensor(tokens[:wanted]).view(-1, ROW_LENGTH)


def encode_prompts(tokenizer: Any, prompts: Sequence[str]) -> list[str]:
    """Return prompts as the model reads them: in its chat template, or plain where it has none."""
    if not tokenizer.chat_template:
        return list(prompts)
    return [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, tokenize=False
        )
        for prompt in prompts
    ]


def _answers(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    source: torch.Generator,
    tell: Callable[[float], None],
) -> list[int]:
    texts = encode_prompts(tokenizer, prompts)
    has_chat = bool(tokenizer.chat_template)
    starts = [tokenizer(text, add_special_tokens=not has_chat).input_ids for text in texts]
    ends = _as_list(model.generation_config.eos_token_id)
    answers = _sample(model, starts, torch.tensor(ends), source, tell)
    tokens: list[int] = []
    for start, answer in zip(starts, answers, strict=True):
        tokens += start + _until_end(answer, set(ends))
    return tokens


def _sample(
    model: Any,
    starts: Sequence[list[int]],
    ends: Tensor,
    source: torch.Generator,
    tell: Callable[[float], None],
) -> list[list[int]]:
    """Go on from some texts together; what comes after an end is not the model's.

    A loop of its own: ``generate`` draws from the whole vocabulary, which takes longer than the
    model does.
    """
    width = max(map(len, starts))
    ids = torch.tensor([[0] * (width - len(start)) + start for start in starts])
    mask = torch.tensor([[0] * (width - len(start)) + [1] * len(start) for start in starts])
    places = (mask.cumsum(1) - 1).clamp(min=0)
    drawn: list[Tensor] = []
    is_over = torch.zeros(len(starts), dtype=torch.bool)
    cache = None
    for step in range(_MAX_NEW_TOKENS):
        out = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=places,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        cache = out.past_key_values
        values, tokens = (out.logits[:, -1].float() / _TEMPERATURE).topk(_TOP_K)
        ids = tokens.gather(1, torch.multinomial(values.softmax(-1), 1, generator=source))
        drawn.append(ids)
        is_over |= torch.isin(ids[:, 0], ends)
        if is_over.all():
            break
        mask = torch.cat([mask, torch.ones_like(ids)], 1)
        places = places[:, -1:] + 1
        tell((step + 1) / _MAX_NEW_TOKENS)
    return torch.cat(drawn, 1).tolist()


def _until_end(answer: list[int], ends: set[int]) -> list[int]:
    """Cut what comes after an answer's end."""
    end = next((place for place, token in enumerate(answer) if token in ends), len(answer))
    return answer[: end + 1]


def _silent(_: float) -> None:
    """Tell nothing: what is missing after the first batch is little."""


def _as_list(value: Any) -> list[int]:
    return [] if value is None else list(value) if isinstance(value, list) else [value]
