"""The trainer's side of a receipt: what the tuned model says, written down.

The model is loaded as it is served: the prepared weights, in the dtype that serving uses, with
the adapter put on by PEFT. To each golden prompt it answers greedily; then it reads prompt and
answer once (teacher-forced), and of each token the likeliest tokens are kept with their
log-probabilities. The same is asked of the base without the adapter (what tuning changes) and of
the weights with the adapter merged in. One model is in memory at a time: weights are merged last,
into a base that is loaded anew, because taking an adapter out of bfloat16 weights again does not
give the same weights.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, PreTrainedModel

from maas.core.errors import ReceiptFailed
from maas.finetune.data.rendering import Message, Renderer
from maas.finetune.receipt.identity import files_hash, identify
from maas.finetune.receipt.records import TOP, Golden, GoldenAnswer, Row

NUM_NEW_TOKENS = 32
# Longer chats say no more and cost a pass each.
MAX_PROMPT_TOKENS = 512
# Asked of every model, whatever it was tuned to; the rest comes from its data.
FIXED: tuple[list[Message], ...] = (
    [{"role": "user", "content": "What is the capital of France?"}],
    [{"role": "user", "content": "Write one sentence about the sea."}],
)
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


@dataclass(frozen=True)
class _Asked:
    """Golden prompts with the tuned model's answers."""

    chats: list[list[Message]]
    prompts: list[list[int]]
    answers: list[list[int]]


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
    said: dict[Path, tuple[_Asked, list[list[Row]], list[list[Row]]]] = {}
    base = _load(model_dir, dtype)
    eos_ids = _eos_ids(base, renderer)
    for folder in missing:
        model = _with_adapter(base, folder)
        asked = _answer(model, renderer, chats, eos_ids)
        tuned = _rows(model, asked)
        with model.disable_adapter():
            said[folder] = asked, tuned, _rows(model, asked)
        base = model.unload()
    del base
    for folder, out in missing.items():
        asked, tuned, plain = said[folder]
        merged = _with_adapter(_load(model_dir, dtype), folder).merge_and_unload()
        golden = Golden(
            kind="adapter",
            dtype=dtype,
            identity=identify(model_dir),
            adapter_sha256=files_hash(folder, ADAPTER_FILES),
            versions=_versions(),
            answers=_records(renderer, asked, tuned, plain, _rows(merged, asked)),
        )
        del merged
        _write_whole(out, golden)


def write_golden_weights(
    model_dir: Path,
    weights_dir: Path,
    trained: Callable[[], Mapping[str, torch.Tensor]],
    chats: Sequence[Sequence[Message]],
    *,
    dtype: str,
    out: Path,
) -> None:
    """Write the golden file of whole weights: the trainer's own, and as they were saved.

    Args:
        model_dir: The base.
        weights_dir: What was saved, as it will be served: weights, config and tokenizer.
        trained: Gives the trainer's parameters by name, in full precision; others are the base's.
        chats: Golden prompts; the fixed ones come on top.
        dtype: Torch's name of the dtype that serving computes in.
        out: The golden file; nothing is done where it is there.
    """
    if out.exists():
        return
    renderer = Renderer(model_dir)
    model = _load(model_dir, dtype)
    eos_ids = _eos_ids(model, renderer)
    _put(model, trained())
    asked = _answer(model, renderer, chats, eos_ids)
    tuned = _rows(model, asked)
    del model
    golden = Golden(
        kind="full",
        dtype=dtype,
        identity=identify(weights_dir),
        adapter_sha256=None,
        versions=_versions(),
        answers=_records(renderer, asked, tuned, None, _rows(_load(weights_dir, dtype), asked)),
    )
    _write_whole(out, golden)


def _load(model_dir: Path, dtype: str) -> PreTrainedModel:
    model = AutoModelForCausalLM.from_pretrained(
        str(model_dir),
        dtype=getattr(torch, dtype),
        local_files_only=True,
        trust_remote_code=False,
    )
    model.eval()
    if torch.cuda.is_available():
        torch.nn.Module.to(model, torch.device("cuda", torch.cuda.current_device()))
    return model


def _with_adapter(base: PreTrainedModel, folder: Path) -> PeftModel:
    # As engines do, the adapter computes in the base's dtype.
    model = PeftModel.from_pretrained(base, str(folder), autocast_adapter_dtype=False)
    model.eval()
    return model


def _put(model: PreTrainedModel, trained: Mapping[str, torch.Tensor]) -> None:
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, tensor in trained.items():
            parameters[name].copy_(tensor)


def _eos_ids(model: PreTrainedModel, renderer: Renderer) -> set[int]:
    """Return the tokens that end an answer where it is served."""
    configured: Any = getattr(model.generation_config, "eos_token_id", None)
    found = (configured, renderer.tokenizer.eos_token_id)
    listed = [value if isinstance(value, list) else [value] for value in found]
    return {value for values in listed for value in values if isinstance(value, int)}


def _answer(
    model: torch.nn.Module,
    renderer: Renderer,
    chats: Sequence[Sequence[Message]],
    eos_ids: set[int],
) -> _Asked:
    """Return the golden prompts that are short enough, and the model's greedy answers."""
    asked = [list(chat) for chat in (*FIXED, *chats)]
    rendered = [(chat, _prompt_of(renderer, chat)) for chat in asked]
    known: set[tuple[int, ...]] = set()
    kept: list[tuple[list[Message], list[int]]] = []
    for chat, ids in rendered:
        if len(ids) <= MAX_PROMPT_TOKENS and tuple(ids) not in known:
            known.add(tuple(ids))
            kept.append((chat, ids))
    prompts = [ids for _, ids in kept]
    return _Asked([chat for chat, _ in kept], prompts, _greedy(model, prompts, eos_ids))


def _prompt_of(renderer: Renderer, chat: list[Message]) -> list[int]:
    """Return the tokens of a golden prompt; a base that knows no chats is asked in plain text."""
    if renderer.has_template:
        return renderer.prompt_ids(chat)
    return renderer.text_ids("\n".join(str(message["content"]) for message in chat))


@torch.no_grad()
def _greedy(
    model: torch.nn.Module, prompts: Sequence[Sequence[int]], eos_ids: set[int]
) -> list[list[int]]:
    """Return greedy answers, computed together, prompts padded on the left.

    Not by ``generate``: that would follow what the weights' ``generation_config.json`` says of
    penalties and sampling.
    """
    longest = max(len(prompt) for prompt in prompts)
    rows = [[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
    real = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    device = next(model.parameters()).device
    ids, mask = torch.tensor(rows, device=device), torch.tensor(real, device=device)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    answers: list[list[int]] = [[] for _ in prompts]
    cache: Any = None
    for _ in range(NUM_NEW_TOKENS):
        output = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        cache = output.past_key_values
        ids = output.logits[:, -1].argmax(-1, keepdim=True)
        for answer, token in zip(answers, ids[:, 0].tolist(), strict=True):
            if not answer or answer[-1] not in eos_ids:
                answer.append(token)
        if all(answer[-1] in eos_ids for answer in answers):
            break
        mask = torch.cat([mask, torch.ones_like(ids)], dim=-1)
        positions = positions[:, -1:] + 1
    return answers


@torch.no_grad()
def _rows(model: torch.nn.Module, asked: _Asked) -> list[list[Row]]:
    """Return for each answer the rows of its tokens, the model reading prompt and answer."""
    device = next(model.parameters()).device
    found: list[list[Row]] = []
    for prompt, answer in zip(asked.prompts, asked.answers, strict=True):
        ids = torch.tensor([[*prompt, *answer]], device=device)
        # The last of the prompt tells the answer's first; what follows the answer nobody asked.
        output = model(input_ids=ids, use_cache=False, logits_to_keep=len(answer) + 1)
        logits = output.logits[0, :-1]
        logprobs = torch.log_softmax(logits.float(), dim=-1)
        if not torch.isfinite(logprobs).all():
            raise ReceiptFailed("the tuned model's logits are no numbers")
        actual = ids[0, len(prompt) :, None]
        values, tokens = logprobs.topk(min(TOP, logprobs.shape[-1]), dim=-1)
        tokens = torch.cat([tokens, actual], dim=-1).tolist()
        values = torch.cat([values, logprobs.gather(-1, actual)], dim=-1).tolist()
        found.append(
            [
                {token: round(value, 6) for token, value in zip(*row, strict=True)}
                for row in zip(tokens, values, strict=True)
            ]
        )
    return found


def _records(
    renderer: Renderer,
    asked: _Asked,
    tuned: list[list[Row]],
    plain: list[list[Row]] | None,
    again: list[list[Row]],
) -> list[GoldenAnswer]:
    return [
        GoldenAnswer(
            messages=[dict(message) for message in chat],
            prompt_ids=asked.prompts[i],
            completion_ids=asked.answers[i],
            completion_text=str(
                renderer.tokenizer.decode(asked.answers[i], skip_special_tokens=True)
            ),
            trainer=tuned[i],
            base=plain[i] if plain else [],
            again=again[i],
        )
        for i, chat in enumerate(asked.chats)
    ]


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("torch", "transformers", "peft")}


def _write_whole(out: Path, golden: Golden) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    new = out.with_suffix(".new")
    with new.open("w", encoding="utf-8") as stream:
        stream.write(golden.model_dump_json())
        stream.flush()
        os.fsync(stream.fileno())
    new.replace(out)
