"""Compares what the trainer, the other form of its weights and the engine say. Light.

Logits are compared as log-probabilities. Softmax does not see a constant added to all logits of
a position, so only differences between them mean anything, and those are the differences between
log-probabilities: equal up to a constant is equal. If no logit moved by more than ``d``, no
log-probability moved by more than ``2d``.

Of each position both sides name their likeliest tokens. A token that one side does not name is,
there, at most as likely as the least of the 20 it names: the difference is at least the distance
to that, and counts as such, so that two sides that name nothing in common do not agree.
"""

import math
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from maas.core.errors import ReceiptFailed
from maas.finetune.receipt.engine import EngineSays, ask_engine
from maas.finetune.receipt.identity import identify
from maas.finetune.receipt.records import (
    TOP,
    Golden,
    Hashes,
    Identity,
    Leg,
    Receipt,
    Row,
    Thresholds,
)

# Measured for docs/finetuning-receipt.md; each is several times what rounding alone gives.
THRESHOLDS = {
    "float32": Thresholds(
        min_greedy_token_agreement=0.98,
        max_logit_difference=0.02,
        max_mean_logit_difference=0.002,
        max_effect_error=0.03,
        min_effect=0.001,
        min_free_run_agreement=0.8,
    ),
    "bfloat16": Thresholds(
        min_greedy_token_agreement=0.9,
        max_logit_difference=2.0,
        max_mean_logit_difference=0.25,
        max_effect_error=0.3,
        min_effect=0.25,
        min_free_run_agreement=0.3,
    ),
}
# Weights of eight bits, computed in float32: about as far from it as bfloat16 is.
THRESHOLDS["int8"] = THRESHOLDS["bfloat16"]
# Finer than bfloat16: its bound holds.
THRESHOLDS["float16"] = THRESHOLDS["bfloat16"]
# Differences of what is next to impossible say nothing.
LIKELY = -10.0
# Log-probabilities are kept with six digits.
_TIE = 2e-6


def measure(
    golden_file: Path,
    *,
    engine_url: str | None,
    engine_model: str | None,
    engine_dir: Path | None = None,
    engine_dtype: str | None = None,
) -> Receipt:
    """Return the receipt of a golden file.

    Args:
        golden_file: What the trainer wrote.
        engine_url: Base URL of an engine that has the tuned model; none where none serves it.
        engine_model: The engine's name of the tuned model.
        engine_dir: The folder that the engine reads weights and tokenizer from, where it is on
            this machine.
        engine_dtype: What the engine computes in, where it was told; none: as the trainer's side.

    Raises:
        ReceiptFailed: The golden file cannot be read.
        EngineUnreachable: The engine went away.
        EngineError: The engine failed at a question.
    """
    golden = Golden.read(golden_file)
    says = None
    if engine_url is not None and engine_model is not None:
        says = ask_engine(golden, url=engine_url, model=engine_model)
    engine = None if engine_dir is None else identify(engine_dir)
    return judge(golden, says, engine, engine_dtype)


def judge(
    golden: Golden,
    says: EngineSays | None,
    engine: Identity | None,
    engine_dtype: str | None = None,
) -> Receipt:
    """Return the verdict on what an engine says.

    Args:
        golden: The trainer's side.
        says: What the engine said; none where none serves the model.
        engine: What the folder is that the engine reads; none where it is not here.
        engine_dtype: What it computes in; none: as the trainer's side.

    Raises:
        ReceiptFailed: A dtype has no thresholds.
    """
    is_adapter = golden.kind == "adapter"
    effect = _compare(golden, [answer.base for answer in golden.answers]) if is_adapter else None
    other = "merged" if is_adapter else "saved"
    legs = {
        "engine": _engine_leg(golden, says),
        other: _compare(golden, [answer.again for answer in golden.answers]),
    }
    limits = {
        "engine": _thresholds(golden.dtype, engine_dtype or golden.dtype),
        other: _thresholds(golden.dtype),
    }
    same_rendering = None if says is None else says.same_rendering
    reasons = [
        reason
        for name, leg in legs.items()
        for reason in _complaints(name, leg, limits[name], effect)
    ]
    reasons += _differences(golden.identity, engine)
    if same_rendering is False:
        reasons.append("the engine renders the golden chats to other tokens than training does")
    if not golden.answers:
        reasons.append("there is no golden prompt")
    return Receipt(
        verdict="failed" if reasons else "passed",
        reasons=tuple(reasons),
        dtype=golden.dtype,
        engine_dtype=engine_dtype,
        prompts=len(golden.answers),
        positions=sum(len(answer.trainer) for answer in golden.answers),
        effect=effect,
        legs=legs,
        hashes=Hashes(trainer=golden.identity, engine=engine, adapter=golden.adapter_sha256),
        same_rendering=same_rendering,
        thresholds=limits,
        versions=golden.versions,
        created_at=time.time(),
    )


def _thresholds(*dtypes: str) -> Thresholds:
    """Return what two sides can reach: what the coarser one can."""
    unknown = [dtype for dtype in dtypes if dtype not in THRESHOLDS]
    if unknown:
        raise ReceiptFailed(f"there are no thresholds for dtype {unknown[0]!r}")
    return max((THRESHOLDS[dtype] for dtype in dtypes), key=lambda one: one.max_logit_difference)


def _engine_leg(golden: Golden, says: EngineSays | None) -> Leg:
    if says is None:
        return Leg(status="not_measured", why="no engine serves the model")
    free_run = sum(says.is_same) / len(says.is_same) if says.is_same else None
    if says.rows is not None:
        leg = _compare(golden, says.rows)
        return leg.model_copy(update={"free_run_agreement": free_run})
    why = "the engine tells no log-probabilities"
    if free_run is None:
        return Leg(status="not_measured", why=f"{why}, and answers none of the golden chats")
    return Leg(status="measured", why=why, free_run_agreement=free_run)


def _compare(golden: Golden, theirs: Sequence[list[Row]]) -> Leg:
    """Return how far other rows are from the trainer's."""
    num_agreeing, num_positions = 0, 0
    differences: list[float] = []
    overlap, weight = 0.0, 0.0
    for answer, rows in zip(golden.answers, theirs, strict=True):
        for ours, row in zip(answer.trainer, rows, strict=True):
            num_positions += 1
            if not all(math.isfinite(value) for value in row.values()):
                return _no_number(num_positions)
            num_agreeing += _agrees(ours, row)
            differences += _row_differences(ours, row)
        for base, ours, row in zip(answer.base, answer.trainer, rows, strict=False):
            for changed, there in _changes(base, ours, row):
                overlap += changed * there
                weight += changed * changed
    return Leg(
        status="measured",
        num_positions=num_positions,
        greedy_token_agreement=round(num_agreeing / max(num_positions, 1), 6),
        max_logit_difference=round(max(differences, default=0.0), 6),
        mean_logit_difference=round(sum(differences) / max(len(differences), 1), 6),
        effect_applied=round(overlap / weight, 6) if weight else None,
    )


def _no_number(position: int) -> Leg:
    """Return the leg of one who says what is no number: that is not JSON, and larger than none."""
    return Leg(
        status="measured",
        why=f"a log-probability at position {position} is no number",
        num_positions=position,
        greedy_token_agreement=0.0,
    )


def _changes(base: Row, ours: Row, theirs: Row) -> Iterable[tuple[float, float]]:
    """Yield what the adapter changes at tokens that all three name: at the trainer, at theirs.

    The second is the first times the least-squares factor, and noise: over all positions the
    factor is found far below the noise of each, so that a wrong scale shows even where an adapter
    changes no more than rounding does.
    """
    for token in base.keys() & ours.keys() & theirs.keys():
        if max(base[token], ours[token]) >= LIKELY:
            yield ours[token] - base[token], theirs[token] - base[token]


def _agrees(ours: Row, theirs: Row) -> bool:
    """Say whether their likeliest token is one of our likeliest; the same to the last bit is a tie.

    bfloat16 has so few logits that the two likeliest are often equal.
    """
    likeliest = max(theirs, key=lambda token: theirs[token])
    return ours.get(likeliest, -math.inf) >= max(ours.values()) - _TIE


def _row_differences(ours: Row, theirs: Row) -> Iterable[float]:
    our_least, their_least = _least(ours), _least(theirs)
    for token in ours.keys() | theirs.keys():
        here, there = ours.get(token), theirs.get(token)
        if max(-math.inf if here is None else here, -math.inf if there is None else there) < LIKELY:
            continue
        if here is not None and there is not None:
            yield abs(here - there)
        elif here is not None:
            yield max(0.0, here - their_least)
        elif there is not None:
            yield max(0.0, there - our_least)


def _least(row: Row) -> float:
    """Return the least of the likeliest tokens: no other one is likelier."""
    return sorted(row.values(), reverse=True)[:TOP][-1]


def _complaints(name: str, leg: Leg, limits: Thresholds, effect: Leg | None) -> Iterable[str]:
    """Yield what is wrong with a leg."""
    if leg.status == "not_measured":
        return
    agreement, largest, mean = (
        leg.greedy_token_agreement,
        leg.max_logit_difference,
        leg.mean_logit_difference,
    )
    if agreement is None:
        # All there is to judge by.
        same = leg.free_run_agreement or 0.0
        if same < limits.min_free_run_agreement:
            yield (
                f"{name}: {same:.0%} of the golden prompts are answered with the same tokens, "
                f"want {limits.min_free_run_agreement:.0%}"
            )
        return
    if largest is None or mean is None:
        yield f"{name}: {leg.why}"
        return
    if agreement < limits.min_greedy_token_agreement:
        yield (
            f"{name}: the likeliest token is the same at {agreement:.1%} of the positions, "
            f"want {limits.min_greedy_token_agreement:.0%}"
        )
    if largest > limits.max_logit_difference:
        yield f"{name}: logits differ by up to {largest:.4f}, want {limits.max_logit_difference}"
    if mean > limits.max_mean_logit_difference:
        yield (
            f"{name}: logits differ by {mean:.4f} in the mean, "
            f"want {limits.max_mean_logit_difference}"
        )
    applied = leg.effect_applied
    is_judged = effect is not None and (effect.mean_logit_difference or 0.0) >= limits.min_effect
    if is_judged and applied is not None and abs(applied - 1) > limits.max_effect_error:
        yield (
            f"{name}: {applied:.0%} of what the adapter changes is there, "
            f"want 100% +- {limits.max_effect_error:.0%}"
        )


def _differences(trainer: Identity, engine: Identity | None) -> Iterable[str]:
    if engine is None:
        return
    for what in ("template", "tokenizer", "weights"):
        ours, theirs = getattr(trainer, what), getattr(engine, what)
        if ours != theirs:
            shown = [value[:12] if value else "none" for value in (ours, theirs)]
            yield f"{what}: trained with {shown[0]}, the engine reads {shown[1]}"
