"""The trainer's side of a receipt: what the base with the adapter says, written down.

For each golden prompt the model (PEFT, in the dtype that serving uses) answers greedily, and at
each token of the answer the likeliest tokens are kept with their log-probabilities. The same is
asked of the weights with the adapter merged in.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from maas.finetune.data.rendering import Message, Renderer

NUM_NEW_TOKENS = 24
TOP = 20
# Asked of every model, whatever it was tuned to; the rest comes from its data.
FIXED: tuple[list[Message], ...] = (
    [{"role": "user", "content": "What is the capital of France?"}],
    [{"role": "user", "content": "Write one sentence about the sea."}],
)
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def file_hash(folder: Path, names: Sequence[str]) -> str:
    """Return the SHA-256 over names and bytes of those files that are there."""
    digest = hashlib.sha256()
    for name in names:
        path = folder / name
        if path.exists():
            digest.update(f"{name}:{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def tokenizer_hash(model_dir: Path) -> str:
    """Return the hash of a model's tokenizer."""
    return file_hash(model_dir, _TOKENIZER_FILES)


def template_hash(renderer: Renderer) -> str:
    """Return the hash of a model's chat template."""
    template = renderer.tokenizer.chat_template
    text = template if isinstance(template, str) else json.dumps(template, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def write_golden(
    model_dir: Path,
    adapters: Mapping[Path, Path],
    chats: Sequence[Sequence[Message]],
    *,
    dtype: str,
) -> None:
    """Write the golden file of each adapter that has none yet, whole or not at all.

    Args:
        model_dir: The base, as it is served.
        adapters: Golden file by adapter folder.
        chats: Golden prompts; the fixed ones come on top.
        dtype: Torch's name of the dtype that serving computes in.
    """
    missing = {folder: out for folder, out in adapters.items() if not out.exists()}
    if not missing:
        return
    renderer = Renderer(model_dir)
    base = AutoModelForCausalLM.from_pretrained(
        str(model_dir), dtype=getattr(torch, dtype), local_files_only=True
    )
    base.eval()
    asked = [list(chat) for chat in (*FIXED, *chats)]
    for folder, out in missing.items():
        # A fresh one each time: removing an adapter leaves the base as it was.
        model = PeftModel.from_pretrained(base, str(folder), autocast_adapter_dtype=False)
        model.eval()
        golden: dict[str, Any] = {
            "dtype": dtype,
            "tokenizer_sha256": tokenizer_hash(model_dir),
            "template_sha256": template_hash(renderer),
            **_ask(model, renderer, asked),
        }
        out.parent.mkdir(parents=True, exist_ok=True)
        new = out.with_suffix(".new")
        new.write_text(json.dumps(golden), encoding="utf-8")
        new.replace(out)
        base = model.unload()


@torch.no_grad()
def _ask(
    model: PeftModel, renderer: Renderer, chats: Sequence[Sequence[Message]]
) -> dict[str, Any]:
    prompts = [renderer.prompt_ids(chat) for chat in chats]
    answers = [_answer(model, renderer, prompt) for prompt in prompts]
    tuned = [_logprobs(model, p, a) for p, a in zip(prompts, answers, strict=True)]
    model.merge_adapter()
    merged = [_logprobs(model, p, a) for p, a in zip(prompts, answers, strict=True)]
    model.unmerge_adapter()
    return {
        "prompts": [
            {
                "messages": list(chat),
                "prompt_ids": prompt,
                "completion_ids": answer,
                "trainer": _top(of_tuned),
                "merged": _top(of_merged),
            }
            for chat, prompt, answer, of_tuned, of_merged in zip(
                chats, prompts, answers, tuned, merged, strict=True
            )
        ]
    }


def _answer(model: PeftModel, renderer: Renderer, prompt: list[int]) -> list[int]:
    ids = torch.tensor([prompt])
    tokenizer = renderer.tokenizer
    out = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=NUM_NEW_TOKENS,
        do_sample=False,
        pad_token_id=tokenizer.pad_token_id or tokenizer.eos_token_id,
    )
    return out[0, len(prompt) :].tolist()


def _logprobs(model: PeftModel, prompt: list[int], answer: list[int]) -> torch.Tensor:
    """Return log-probabilities at each token of an answer, shape (tokens, vocabulary)."""
    logits = model(input_ids=torch.tensor([[*prompt, *answer]])).logits[0]
    return torch.log_softmax(logits[len(prompt) - 1 : -1].float(), dim=-1)


def _top(logprobs: torch.Tensor) -> list[dict[str, float]]:
    values, ids = logprobs.topk(TOP, dim=-1)
    return [
        {str(token): round(value, 6) for token, value in zip(row_ids, row, strict=True)}
        for row_ids, row in zip(ids.tolist(), values.tolist(), strict=True)
    ]
