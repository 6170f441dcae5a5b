"""The proof of quality: a copy keeps all, and something else does not pass for it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from maas.edge.quality.measure import likeness, measure, take_reference
from maas.edge.quality.scorers import OnnxScorer, Text, TorchScorer, mean_logprob
from maas.edge.quality.tasks import GOLDEN_PROMPTS, held_tasks
from maas.edge.runtime.engine.options import EngineOptions

VOCAB = 128
EOS = 0


class Model:
    """A model of bigrams over ASCII; noise makes another one of it."""

    def __init__(self, noise: float, seed: int = 0) -> None:
        source = np.random.default_rng(0)
        self._table = source.normal(0, 3, (VOCAB, VOCAB)).astype(np.float32)
        self._table += noise * np.random.default_rng(seed + 1).normal(0, 3, (VOCAB, VOCAB))

    def logits(self, tokens: Sequence[int], num_before: int = 0):
        return self._table[np.array(tokens)][num_before:].astype(np.float32)

    def ends(self, texts: Sequence[Text]) -> list[float]:
        return [
            mean_logprob(self.logits(text.tokens, text.start - 1)[:-1], text.tokens[text.start :])
            for text in texts
        ]

    def greedy(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> list[list[int]]:
        return [self._answer(prompt, max_tokens) for prompt in prompts]

    def _answer(self, prompt: Sequence[int], max_tokens: int) -> list[int]:
        tokens = [int(self._table[prompt[-1]].argmax())]
        while len(tokens) < max_tokens and tokens[-1] != EOS:
            tokens.append(int(self._table[tokens[-1]].argmax()))
        return [token for token in tokens if token != EOS]


def encode(text: str) -> list[int]:
    return [ord(char) % VOCAB for char in text]


@pytest.fixture(scope="module")
def reference():
    prompts = [encode(text) for text in GOLDEN_PROMPTS]
    return take_reference(Model(0.0), held_tasks(), prompts, encode)


def prove(reference, model: Model, *, force: bool = False, at_least: float = 80.0):
    return measure(
        reference, model, encode, min_score_percent=at_least, goal_percent=98.0, force=force
    )


def test_tasks_are_the_same_each_time_and_have_one_right_ending() -> None:
    items = held_tasks()
    assert items == held_tasks()
    assert len(items) > 150
    for item in items:
        assert 0 <= item.answer < len(item.endings)
        assert len(set(item.endings)) == len(item.endings), item


def test_a_copy_keeps_everything(reference) -> None:
    proof = prove(reference, Model(0.0))
    assert proof.score_percent == 100.0
    assert proof.score_interval_percent == (100.0, 100.0)
    assert proof.greedy_agreement == proof.free_running_prefix == 1.0
    assert proof.perplexity_ratio == pytest.approx(1.0)
    assert proof.kl_divergence == pytest.approx(0.0, abs=1e-6)
    assert proof.verdict == "passed"
    assert sum(task.num_items for task in proof.tasks.values()) == len(reference.items)


def test_more_noise_lies_further_away(reference) -> None:
    near, far = (likeness(reference, Model(noise)) for noise in (0.05, 0.5))
    assert 0 < near.kl_divergence < far.kl_divergence
    assert near.greedy_agreement > far.greedy_agreement
    assert 1.0 < near.perplexity_ratio < far.perplexity_ratio


def test_what_keeps_too_little_is_refused_unless_forced(reference) -> None:
    other = Model(30.0)
    score = prove(reference, other).score_percent
    assert prove(reference, other, at_least=score + 1).verdict == "refused"
    assert prove(reference, other, at_least=score + 1, force=True).verdict == "forced"
    assert prove(reference, other, at_least=score).verdict == "passed"


def test_what_keeps_less_than_the_goal_says_so(reference) -> None:
    copy = Model(0.0)
    bounds = {"min_score_percent": 0.0, "force": False}
    proof = measure(reference, copy, encode, goal_percent=100.1, **bounds)
    assert (proof.below_goal, proof.verdict) == (True, "passed")
    assert not measure(reference, copy, encode, goal_percent=100.0, **bounds).below_goal


def test_texts_scored_together_score_as_each_alone(tiny_weights: Path, tiny: Path) -> None:
    source = np.random.default_rng(5)
    start = [int(n) for n in source.integers(0, 256, 9)]
    # One ending of one token and one of three each, of contexts of different lengths.
    texts = [
        Text((*start[:length], *(int(n) for n in source.integers(0, 256, number))), length)
        for length in (3, 9, 5)
        for number in (1, 1, 3)
    ]
    model = AutoModelForCausalLM.from_pretrained(tiny_weights, dtype=torch.float32).eval()
    scorers = TorchScorer(model, frozenset([257])), OnnxScorer(tiny, EngineOptions(num_threads=1))
    for scorer in scorers:
        alone = [
            mean_logprob(scorer.logits(text.tokens, text.start - 1)[:-1], text.tokens[text.start :])
            for text in texts
        ]
        assert scorer.ends(texts) == pytest.approx(alone, rel=0.02, abs=0.02)


def test_prompts_answered_together_are_answered_as_each_alone(tiny_weights: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_weights, dtype=torch.float32).eval()
    scorer = TorchScorer(model, frozenset([257]))
    prompts = [[72, 101, 108, 108, 111], [10, 20], [7]]
    together = scorer.greedy(prompts, 12)
    assert together == [scorer.greedy([prompt], 12)[0] for prompt in prompts]
    assert all(1 <= len(answer) <= 12 for answer in together)
