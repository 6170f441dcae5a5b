"""Compares a bundle with its original and says what is kept."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from maas.edge.quality.scorers import Scorer, Text, log_softmax
from maas.edge.quality.tasks import Item

MAX_GOLDEN_TOKENS = 48
_Z95 = 1.96
Verdict = Literal["passed", "refused", "forced"]


class TaskScore(msgspec.Struct, frozen=True):
    """How many items of one task each side does."""

    num_items: int
    num_original: int
    num_bundle: int


class QualityReceipt(msgspec.Struct, frozen=True, kw_only=True):
    """What a bundle keeps, against the same model in bfloat16.

    Attributes:
        tasks: By task.
        score_percent: The bundle's correct items in percent of the original's.
        score_interval_percent: Where that lies with 95 % confidence, by the items that one side
            does and the other does not.
        greedy_agreement: Share of positions of the original's golden answers where the bundle,
            given the same start, takes the same token.
        free_running_prefix: Mean share of a golden answer before the bundle, left alone, differs.
        perplexity_ratio: The bundle's over the original's, on the original's golden answers.
        kl_divergence: Mean of original to bundle on them, in nats.
        min_score_percent: Under it an export is refused.
        goal_percent: What it should keep.
        below_goal: Whether it keeps less than that.
    """

    tasks: dict[str, TaskScore]
    num_items: int
    score_percent: float
    score_interval_percent: tuple[float, float]
    greedy_agreement: float
    free_running_prefix: float
    perplexity_ratio: float
    kl_divergence: float
    num_golden_tokens: int
    min_score_percent: float
    goal_percent: float
    below_goal: bool
    verdict: Verdict


@dataclass(frozen=True)
class Golden:
    """The original's answer to one prompt, and its logits along it."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    logprobs: NDArray[np.float32]


@dataclass(frozen=True)
class Reference:
    """What the original does; measured once, compared with any number of bundles."""

    items: tuple[Item, ...]
    correct: tuple[bool, ...]
    golden: tuple[Golden, ...]


@dataclass(frozen=True)
class Likeness:
    """How near a bundle is to the original on golden answers."""

    kl_divergence: float
    greedy_agreement: float
    perplexity_ratio: float


Encode = Callable[[str], list[int]]


def take_reference(
    scorer: Scorer, items: Sequence[Item], prompts: Sequence[Sequence[int]], encode: Encode
) -> Reference:
    """Have the original do the tasks and answer the golden prompts.

    Args:
        scorer: The original.
        items: Tasks.
        prompts: Golden prompts, as tokens.
        encode: Turns a text into tokens.
    """
    golden: list[Golden] = []
    answers = scorer.greedy(prompts, MAX_GOLDEN_TOKENS)
    for prompt, answer in zip(prompts, answers, strict=True):
        if answer:
            rows = scorer.logits([*prompt, *answer], len(prompt) - 1)[:-1]
            kept = log_softmax(rows).astype(np.float32)
            golden.append(Golden(tuple(prompt), tuple(answer), kept))
    return Reference(tuple(items), which_correct(scorer, items, encode), tuple(golden))


def which_correct(scorer: Scorer, items: Sequence[Item], encode: Encode) -> tuple[bool, ...]:
    """Say of each item whether the right ending is the likeliest, by its mean over tokens."""
    texts = [text for item in items for text in _texts(item, encode)]
    scores = iter(scorer.ends(texts))
    return tuple(
        int(np.argmax([next(scores) for _ in item.endings])) == item.answer for item in items
    )


def _texts(item: Item, encode: Encode) -> Iterator[Text]:
    context = encode(item.context)
    for ending in item.endings:
        tokens = encode(item.context + ending)
        # Where the tokenizer merges over the border, the ending begins with the first that differs.
        start = next(
            (i for i, (a, b) in enumerate(zip(context, tokens, strict=False)) if a != b),
            min(len(context), len(tokens) - 1),
        )
        yield Text(tuple(tokens), start)


def likeness(reference: Reference, bundle: Scorer) -> Likeness:
    """Compare along the original's golden answers; seconds, for the search of settings."""
    divergence: list[NDArray[Any]] = []
    agrees: list[NDArray[Any]] = []
    loss: list[NDArray[Any]] = []
    for golden in reference.golden:
        tokens = [*golden.prompt, *golden.answer]
        ours = log_softmax(bundle.logits(tokens, len(golden.prompt) - 1)[:-1])
        theirs = golden.logprobs.astype(np.float64)
        divergence.append((np.exp(theirs) * (theirs - ours)).sum(-1))
        agrees.append(ours.argmax(-1) == theirs.argmax(-1))
        places = np.arange(len(golden.answer))
        loss.append(theirs[places, golden.answer] - ours[places, golden.answer])
    return Likeness(
        kl_divergence=float(np.concatenate(divergence).mean()),
        greedy_agreement=float(np.concatenate(agrees).mean()),
        perplexity_ratio=math.exp(float(np.concatenate(loss).mean())),
    )


def kept_percent(reference: Reference, bundle: Scorer, encode: Encode) -> float:
    """Return the bundle's correct items in percent of the original's."""
    return _percent(which_correct(bundle, reference.items, encode), reference.correct)


def _percent(now: Sequence[bool], was: Sequence[bool]) -> float:
    return 100.0 * sum(now) / max(sum(was), 1)


def measure(  # noqa: PLR0913 - the bounds, all by keyword
    reference: Reference,
    bundle: Scorer,
    encode: Encode,
    *,
    min_score_percent: float,
    goal_percent: float,
    force: bool,
    max_kl_divergence: float | None = None,
) -> QualityReceipt:
    """Compare a bundle with the original.

    Args:
        reference: The original's side.
        bundle: The other.
        encode: Turns a text into tokens.
        min_score_percent: Under it the verdict is ``refused``, or ``forced``.
        goal_percent: Under it the receipt says so.
        force: Whether a bundle under it is wanted all the same.
        max_kl_divergence: Nats a token it may lie from the original; none sets no bound.
    """
    does = which_correct(bundle, reference.items, encode)
    pairs = [
        (item.task, was, now)
        for item, was, now in zip(reference.items, reference.correct, does, strict=True)
    ]
    num_original = max(sum(was for _, was, _ in pairs), 1)
    score = _percent(does, reference.correct)
    near = likeness(reference, bundle)
    is_near = max_kl_divergence is None or near.kl_divergence <= max_kl_divergence
    is_good = score >= min_score_percent and is_near
    return QualityReceipt(
        tasks=_by_task(pairs),
        num_items=len(pairs),
        score_percent=score,
        score_interval_percent=_interval(pairs, num_original),
        greedy_agreement=near.greedy_agreement,
        free_running_prefix=_free_running(reference, bundle),
        perplexity_ratio=near.perplexity_ratio,
        kl_divergence=near.kl_divergence,
        num_golden_tokens=sum(len(golden.answer) for golden in reference.golden),
        min_score_percent=min_score_percent,
        goal_percent=goal_percent,
        below_goal=score < goal_percent,
        verdict="passed" if is_good else "forced" if force else "refused",
    )


def _by_task(pairs: Sequence[tuple[str, bool, bool]]) -> dict[str, TaskScore]:
    found: dict[str, TaskScore] = {}
    for task, was, now in pairs:
        known = found.get(task, TaskScore(0, 0, 0))
        found[task] = TaskScore(
            known.num_items + 1, known.num_original + was, known.num_bundle + now
        )
    return found


def _interval(pairs: Sequence[tuple[str, bool, bool]], num_original: int) -> tuple[float, float]:
    """Return the score's interval; paired: items both do, or neither does, say nothing of it.

    Source: McNemar's variance of a difference of paired proportions.
    """
    num_lost = sum(was and not now for _, was, now in pairs)
    num_won = sum(now and not was for _, was, now in pairs)
    change = num_won - num_lost
    spread = math.sqrt(max(num_won + num_lost - change**2 / len(pairs), 0.0))
    low = 100.0 * (num_original + change - _Z95 * spread) / num_original
    high = 100.0 * (num_original + change + _Z95 * spread) / num_original
    return max(low, 0.0), high


def _free_running(reference: Reference, bundle: Scorer) -> float:
    shares: list[float] = []
    answers = bundle.greedy([golden.prompt for golden in reference.golden], MAX_GOLDEN_TOKENS)
    for golden, said in zip(reference.golden, answers, strict=True):
        pairs = zip(said, golden.answer, strict=False)
        shorter = min(len(said), len(golden.answer))
        same = next((i for i, (a, b) in enumerate(pairs) if a != b), shorter)
        shares.append(same / len(golden.answer))
    return sum(shares) / max(len(shares), 1)
