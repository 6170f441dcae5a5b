"""Text to calibrate on, written by the model itself: what it says is what it must go on saying.

Source: "LLM-QAT: Data-Free Quantization Aware Training" (Liu et al., 2023, section 3.1): text a
model generates keeps more of it than text it never saw.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

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
    torch.manual_seed(seed)
    tokens: list[int] = []
    wanted = num_rows * ROW_LENGTH
    while len(tokens) < wanted:
        for form in FORMS:
            tokens += _answers(model, tokenizer, [form.format(topic) for topic in TOPICS])
            tell(min(1.0, len(tokens) / wanted))
            if len(tokens) >= wanted:
                break
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


def _answers(model: Any, tokenizer: Any, prompts: Sequence[str]) -> list[int]:
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    batch = tokenizer(
        encode_prompts(tokenizer, prompts),
        return_tensors="pt",
        padding=True,
        padding_side="left",
        add_special_tokens=not tokenizer.chat_template,
    )
    rows = model.generate(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        max_new_tokens=_MAX_NEW_TOKENS,
        do_sample=True,
        temperature=0.8,
        top_p=0.95,
        pad_token_id=tokenizer.pad_token_id,
    )
    ends = set(_as_list(model.generation_config.eos_token_id))
    tokens: list[int] = []
    for row, mask in zip(rows, batch["attention_mask"], strict=True):
        start = int((mask == 0).sum())
        tokens += _until_end(row[start:].tolist(), int(mask.sum()), ends)
    return tokens


def _until_end(row: list[int], num_prompt_tokens: int, ends: set[int]) -> list[int]:
    """Cut what comes after the answer's end: padding."""
    for place in range(num_prompt_tokens, len(row)):
        if row[place] in ends:
            return row[: place + 1]
    return row


def _as_list(value: Any) -> list[int]:
    return [] if value is None else list(value) if isinstance(value, list) else [value]
