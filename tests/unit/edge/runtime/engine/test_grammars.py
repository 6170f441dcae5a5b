"""Grammars: what is too large is refused, what was compiled is remembered, answers are apart."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llguidance import LLMatcher

from maas.core.errors import EngineError, InvalidRequest
from maas.edge.runtime.engine import grammars
from maas.edge.runtime.engine.grammars import Grammar, GrammarCompiler
from maas.edge.runtime.server.grammars import json_grammar

VOCAB_SIZE = 288
# So many may come first that llguidance gives up.
WIDE = {"type": "object", "properties": {f"p{n}": {"type": "string"} for n in range(1000)}}


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Texts that were compiled."""
    texts: list[str] = []

    def compile_one(tokenizer: Any, text: str, **more: Any) -> LLMatcher:
        texts.append(text)
        return LLMatcher(tokenizer, text, **more)

    monkeypatch.setattr(grammars, "LLMatcher", compile_one)
    return texts


@pytest.fixture
def compiler(tiny: Path) -> GrammarCompiler:
    return GrammarCompiler(tiny / "tokenizer.json", VOCAB_SIZE, 257)


def constant(value: object) -> str:
    return json_grammar({"const": value})


def allowed(grammar: Grammar) -> list[int]:
    logits = np.zeros(VOCAB_SIZE, np.float32)
    grammar.restrict(logits)
    return [int(token) for token in np.flatnonzero(np.isfinite(logits))]


def test_a_grammar_that_comes_again_is_not_compiled_again(made, compiler):
    for _ in range(3):
        compiler.compile(constant("a"))
    assert made == [constant("a")]


def test_what_was_compiled_is_known(compiler):
    assert not compiler.knows(constant("a"))
    compiler.compile(constant("a"))
    assert (compiler.knows(constant("a")), compiler.knows(constant("b"))) == (True, False)


def test_what_was_not_asked_for_the_longest_is_forgotten_first(made, compiler, monkeypatch):
    monkeypatch.setattr(grammars, "_MAX_REMEMBERED", 2)
    for value in ("a", "b", "a", "c", "a", "b"):
        compiler.compile(constant(value))
    assert made == [constant(value) for value in ("a", "b", "c", "b")]


def test_answers_of_one_grammar_go_their_own_ways(compiler):
    one, two = (compiler.compile(constant("ab")) for _ in range(2))
    start = allowed(one)
    one.take(start[0])
    assert allowed(one) != start
    assert allowed(two) == allowed(compiler.compile(constant("ab"))) == start


def walk(grammar: Grammar) -> None:
    for _ in range(20):
        grammar.take(allowed(grammar)[-1])


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        ({"enum": [f"value {index}" for index in range(20_000)]}, "characters; at most 262144"),
        (
            # Short, and a million symbols.
            {
                "type": "array",
                "minItems": 1000,
                "maxItems": 100_000,
                "items": {"type": "array", "maxItems": 100_000, "items": {"type": "integer"}},
            },
            "too big",
        ),
    ],
)
def test_what_is_too_large_is_refused(compiler, schema, why):
    with pytest.raises(InvalidRequest, match=why) as caught:
        compiler.compile(json_grammar(schema))
    assert caught.value.context["param"] == "response_format"
    assert "backtrace" not in caught.value.message


def test_what_fails_at_its_first_tokens_is_refused(compiler):
    with pytest.raises(InvalidRequest, match=r"the grammar is refused: .*Current row has"):
        compiler.compile(json_grammar(WIDE))


def test_a_grammar_that_fails_on_the_way_is_an_error_and_no_complete_answer(compiler):
    schema = {"type": "array", "minItems": 1, "items": {"const": "ab"}}
    deep = {"type": "array", "minItems": 2, "prefixItems": [schema, WIDE], "maxItems": 2}
    grammar = compiler.compile(json_grammar(deep))
    with pytest.raises(EngineError, match=r"the grammar cannot be followed: .*Current row has"):
        walk(grammar)
