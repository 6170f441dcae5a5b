"""The engine on a tiny model: what it answers, together and alone, and how requests end."""

import json
import queue
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from maas.core.errors import (
    CapabilityMissing,
    EngineError,
    InvalidRequest,
    LimitExceeded,
    NotFound,
)
from maas.edge.runtime.engine import core
from maas.edge.runtime.engine.contract import Output, SamplingParams
from maas.edge.runtime.engine.core import OnnxEngine
from maas.edge.runtime.engine.grammars import Grammar
from maas.edge.runtime.engine.options import EngineOptions
from maas.edge.runtime.engine.pace import Pace, PaceReader

GREEDY = SamplingParams(24, temperature=0.0, ignore_eos=True)


def prompt(seed: int, length: int = 20) -> list[int]:
    return [int(n) for n in np.random.default_rng(seed).integers(0, 256, length)]


class Asked:
    """One request, and what came of it."""

    def __init__(self, engine: OnnxEngine, tokens: list[int], params: SamplingParams, **more):
        self.outputs: queue.Queue[Output] = queue.Queue()
        self.request_id = engine.submit(tokens, params, self.outputs.put, **more)
        self.last: Output | None = None

    def wait(self) -> list[int]:
        tokens: list[int] = []
        while self.last is None:
            output = self.outputs.get(timeout=30)
            tokens += output.token_ids
            if output.finish_reason is not None:
                self.last = output
        return tokens


@pytest.fixture
def make(tiny: Path) -> Iterator[Callable[..., OnnxEngine]]:
    made: list[OnnxEngine] = []

    def start(**options: object) -> OnnxEngine:
        plain = {"num_threads": 1, "enable_spinning": False, "max_draft_tokens": 0}
        made.append(OnnxEngine(tiny, EngineOptions(**(plain | options))))
        return made[-1]

    yield start
    for engine in made:
        engine.close()


def test_answers_in_a_batch_are_those_given_alone(make):
    engine = make(max_num_seqs=4, prefix_cache_bytes=0)
    alone = [Asked(engine, prompt(i, 10 + 7 * i), GREEDY).wait() for i in range(6)]
    asked = [Asked(engine, prompt(i, 10 + 7 * i), GREEDY) for i in range(6)]
    together = [one.wait() for one in asked]
    # Rows of a larger product round otherwise: a rare near-tie may go the other way.
    same = sum(a == b for a, b in zip(alone, together, strict=True))
    assert same >= 5, (alone, together)


def test_a_request_that_ends_in_the_middle_leaves_the_others_as_they_are(make):
    engine = make(max_num_seqs=4, prefix_cache_bytes=0)
    lengths = [3, 40, 8, 40]
    params = [SamplingParams(n, temperature=0.0, ignore_eos=True) for n in lengths]
    alone = [Asked(engine, prompt(i), p).wait() for i, p in enumerate(params)]
    asked = [Asked(engine, prompt(i), p) for i, p in enumerate(params)]
    together = [one.wait() for one in asked]
    assert [len(tokens) for tokens in together] == lengths
    assert sum(a == b for a, b in zip(alone, together, strict=True)) >= 3


def test_a_known_start_is_not_computed_again_and_changes_nothing(make):
    engine = make(prefix_cache_bytes=1 << 24)
    first = Asked(engine, prompt(1, 60), GREEDY)
    told = first.wait()
    again = Asked(engine, prompt(1, 60), GREEDY)
    assert again.wait()[:8] == told[:8]
    assert first.last is not None
    assert first.last.num_cached_tokens == 0
    assert again.last is not None
    assert again.last.num_cached_tokens == 59


def test_tenants_with_other_salts_share_no_cache(make):
    engine = make(prefix_cache_bytes=1 << 24)
    Asked(engine, prompt(1, 60), GREEDY, cache_salt="a").wait()
    other = Asked(engine, prompt(1, 60), GREEDY, cache_salt="b")
    other.wait()
    assert other.last is not None
    assert other.last.num_cached_tokens == 0


def test_guessing_gives_the_same_answer_in_fewer_steps(make):
    loop = [1, 2, 3, 4, 5, 6, 7, 8] * 6
    bias = {n: 60.0 - 0.1 * n for n in range(1, 9)}
    # Pushed towards eight tokens, a random model repeats itself.
    params = SamplingParams(40, temperature=0.0, ignore_eos=True, logit_bias=bias)
    plain = Asked(make(prefix_cache_bytes=0), loop, params).wait()
    guessing = Asked(make(prefix_cache_bytes=0, max_draft_tokens=4), loop, params)
    assert guessing.wait() == plain
    assert guessing.outputs.qsize() == 0


def test_the_same_seed_gives_the_same_answer(make):
    engine = make()
    params = SamplingParams(16, temperature=1.0, seed=5, ignore_eos=True)
    answers = [Asked(engine, prompt(3), params).wait() for _ in range(3)]
    assert answers[0] == answers[1] == answers[2]
    other = SamplingParams(16, temperature=1.0, seed=6, ignore_eos=True)
    assert Asked(engine, prompt(3), other).wait() != answers[0]


def test_an_answer_ends_at_the_models_end_token_unless_told_otherwise(make):
    engine = make()
    bias = {257: 100.0}
    ended = Asked(engine, prompt(1), SamplingParams(9, temperature=0.0, logit_bias=bias))
    assert ended.wait() == []
    assert ended.last is not None
    assert ended.last.finish_reason == "stop"
    params = SamplingParams(9, temperature=0.0, logit_bias=bias, ignore_eos=True)
    assert Asked(engine, prompt(1), params).wait() == [257] * 9


def test_an_answer_ends_where_the_context_does(make):
    engine = make(max_model_len=64)
    asked = Asked(engine, prompt(1, 60), SamplingParams(50, temperature=0.0, ignore_eos=True))
    assert len(asked.wait()) == 4
    assert asked.last is not None
    assert asked.last.finish_reason == "length"


def test_a_cancelled_request_ends_and_the_engine_goes_on(make):
    engine = make(max_model_len=512)
    asked = Asked(engine, prompt(1), SamplingParams(480, temperature=0.0, ignore_eos=True))
    asked.outputs.get(timeout=30)
    engine.cancel(asked.request_id)
    asked.wait()
    assert asked.last is not None
    assert asked.last.finish_reason == "cancelled"
    assert len(Asked(engine, prompt(2), GREEDY).wait()) == 24
    deadline = time.monotonic() + 5
    while engine.stats.num_running and time.monotonic() < deadline:
        time.sleep(0.01)
    assert engine.stats.num_running == engine.stats.num_waiting == 0


def test_requests_that_outgrow_the_memory_wait_and_lose_nothing(make):
    # Room for 256 positions: four requests of 100 do not fit at once.
    engine = make(max_num_seqs=4, kv_cache_bytes=1, prefix_cache_bytes=0, max_model_len=200)
    params = SamplingParams(80, temperature=0.0, ignore_eos=True)
    asked = [Asked(engine, prompt(i), params) for i in range(4)]
    assert [len(one.wait()) for one in asked] == [80] * 4
    assert all(one.last is not None and one.last.finish_reason == "length" for one in asked)


def test_an_answer_follows_its_grammar(make):
    engine = make()
    schema = {"type": "object", "properties": {"n": {"enum": [1, 22]}}, "required": ["n"]}
    schema |= {"additionalProperties": False, "x-guidance": {"whitespace_flexible": False}}
    grammar = json.dumps({"grammars": [{"json_schema": schema}]})
    for seed in range(4):
        params = SamplingParams(40, temperature=1.0, seed=seed, grammar=grammar)
        asked = Asked(engine, prompt(seed), params)
        text = "".join(chr(n) for n in map(_byte_of(), asked.wait()))
        assert json.loads(text)["n"] in {1, 22}
        assert asked.last is not None
        assert asked.last.finish_reason == "stop"


def _byte_of() -> Callable[[int], int]:
    from tokenizers import pre_tokenizers  # noqa: PLC0415 - a table, not the module under test

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    printable = {chr(n): n for n in range(256)}
    return lambda token: printable.get(alphabet[token], 32)


def test_log_probabilities_are_those_of_the_model_before_penalties(make):
    engine = make()
    params = SamplingParams(4, temperature=0.0, num_logprobs=3, logit_bias={7: 100.0})
    asked = Asked(engine, prompt(1), params)
    logprobs = []
    while asked.last is None:
        output = asked.outputs.get(timeout=30)
        logprobs += output.logprobs or ()
        asked.last = output if output.finish_reason else None
    assert len(logprobs) == 4
    for item in logprobs:
        assert len(item.top) == 3
        assert item.logprob <= item.top[0][1] <= 0
        assert item.top[0][1] >= item.top[1][1] >= item.top[2][1]


@pytest.mark.parametrize(
    ("tokens", "params", "error"),
    [
        ([], GREEDY, InvalidRequest),
        (prompt(1, 512), GREEDY, InvalidRequest),
        ([1, 10**6], GREEDY, InvalidRequest),
        ([1, -1], GREEDY, InvalidRequest),
        (prompt(1), SamplingParams(4, logit_bias={10**20: 1.0}), InvalidRequest),
        (prompt(1), SamplingParams(4, logit_bias={-1: 1.0}), InvalidRequest),
        (prompt(1), SamplingParams(4, grammar="{"), InvalidRequest),
        (
            prompt(1),
            SamplingParams(4, grammar='{"grammars":[{"json_schema":{"type":3}}]}'),
            InvalidRequest,
        ),
    ],
)
def test_what_is_wrong_is_refused_before_it_is_queued(make, tokens, params, error):
    engine = make()
    with pytest.raises(error):
        engine.submit(tokens, params, lambda _: None)
    assert engine.stats.num_waiting == 0
    assert len(Asked(engine, prompt(1), GREEDY).wait()) == 24


def test_a_token_that_cannot_be_chosen_ends_its_own_answer_alone(make, monkeypatch):
    def fail(*_: object) -> None:
        raise IndexError("out of bounds")

    monkeypatch.setattr(Grammar, "restrict", fail)
    engine = make(max_num_seqs=3, prefix_cache_bytes=0)
    grammar = '{"grammars":[{"json_schema":{"type":"object"}}]}'
    asked = [
        Asked(engine, prompt(i), SamplingParams(40, temperature=0.0, ignore_eos=True, grammar=one))
        for i, one in enumerate((None, grammar, None))
    ]
    assert [len(one.wait()) for one in asked] == [40, 0, 40]
    assert [one.last.finish_reason for one in asked] == ["length", "error", "length"]
    assert asked[1].last.error == "choosing a token failed: out of bounds"


def test_a_full_queue_takes_no_more_and_empties(make):
    engine = make(max_num_seqs=1, max_num_waiting=2)
    asked = [Asked(engine, prompt(0), GREEDY)]
    asked[0].outputs.put(asked[0].outputs.get(timeout=30))
    asked += [Asked(engine, prompt(i), GREEDY) for i in range(2)]
    with pytest.raises(LimitExceeded) as caught:
        engine.submit(prompt(4), GREEDY, lambda _: None)
    assert caught.value.context["retry_after_s"] > 0
    for one in asked:
        one.wait()
    assert len(Asked(engine, prompt(5), GREEDY).wait()) == 24


def test_an_adapter_that_is_not_loaded_is_not_found(make, tmp_path):
    engine = make()
    with pytest.raises(NotFound):
        engine.submit(prompt(1), GREEDY, lambda _: None, adapter="x")
    with pytest.raises(EngineError, match="adapter 'x'"):
        engine.load_adapter("x", tmp_path)
    with pytest.raises(CapabilityMissing):
        engine.embed([[1]])


def test_another_model_answers_under_its_name_until_it_is_unloaded(make, tiny):
    engine = make()
    base = Asked(engine, prompt(4), GREEDY).wait()
    engine.load_adapter("twin", tiny)
    engine.load_adapter("twin", tiny)
    assert Asked(engine, prompt(4), GREEDY, adapter="twin").wait() == base
    running = Asked(engine, prompt(5), GREEDY, adapter="twin")
    engine.unload_adapter("twin")
    assert len(running.wait()) == 24
    with pytest.raises(NotFound):
        engine.submit(prompt(4), GREEDY, lambda _: None, adapter="twin")


def test_closing_ends_what_runs(make):
    engine = make(max_num_seqs=1, max_model_len=512)
    asked = [
        Asked(engine, prompt(i), SamplingParams(480, temperature=0.0, ignore_eos=True))
        for i in range(3)
    ]
    asked[0].outputs.get(timeout=30)
    threading.Thread(target=engine.close).start()
    for one in asked:
        one.wait()
        assert one.last is not None
        assert one.last.finish_reason == "cancelled"


def at(share: float) -> PaceReader:
    return lambda: Pace(share, "hot", 80.0)


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, float]]:
    """What the engine asks to pause for: the seconds of its steps, and its share."""
    asked: list[tuple[float, float]] = []

    def pause_s(step_s: float, share: float) -> float:
        asked.append((step_s, share))
        return 0.0

    monkeypatch.setattr(core, "pause_s", pause_s)
    return asked


def test_a_hot_engine_pauses_after_each_step_by_what_it_took(make, pauses):
    engine = make(pace=at(0.25), prefix_cache_bytes=0)
    started = time.perf_counter()
    assert len(Asked(engine, prompt(1), GREEDY).wait()) == 24
    engine.close()
    steps = [step_s for step_s, share in pauses if share == 0.25]
    # The first gives the prompt's token and the next one.
    assert len(steps) == len(pauses) == 23
    assert 0 < sum(steps) < time.perf_counter() - started
    assert engine.stats.pace == Pace(0.25, "hot", 80.0)


def test_a_cool_engine_does_not_pause(make, pauses):
    for options in ({}, {"pace": at(1.0)}):
        assert len(Asked(make(**options), prompt(1), GREEDY).wait()) == 24
    assert pauses == []
    assert make().stats.pace == Pace(1.0, "full", None)


def test_a_pause_takes_time_in_which_nothing_is_computed(make):
    used = []

    def pace() -> Pace:
        used.append((time.perf_counter(), time.thread_time()))
        return Pace(0.1, "hot")

    engine = make(pace=pace, prefix_cache_bytes=0)
    Asked(engine, prompt(1), GREEDY).wait()
    engine.close()
    wall_s, computed_s = (end - begin for begin, end in zip(used[0], used[-1], strict=True))
    assert computed_s < 0.5 * wall_s


def test_the_answer_is_the_same_at_any_pace(make):
    plain = Asked(make(prefix_cache_bytes=0), prompt(1), GREEDY).wait()
    assert Asked(make(prefix_cache_bytes=0, pace=at(0.5)), prompt(1), GREEDY).wait() == plain


def test_closing_ends_a_pause_at_once_and_a_new_request_does_not(make, monkeypatch):
    monkeypatch.setattr(core, "pause_s", lambda _step_s, _share: 30.0)
    engine = make(pace=at(0.25))
    first = Asked(engine, prompt(1), GREEDY)
    first.outputs.get(timeout=30)
    second = Asked(engine, prompt(2), GREEDY)
    with pytest.raises(queue.Empty):
        second.outputs.get(timeout=0.3)
    started = time.monotonic()
    engine.close()
    assert time.monotonic() - started < 10
    assert second.wait() == []


def test_threads_that_may_pause_do_not_spin_in_the_pause(tiny):
    for options, stops in (({}, False), ({"pace": at(1.0)}, True)):
        model = core.DecoderModel(tiny, EngineOptions(num_threads=1, **options))
        given = model.session.get_session_options()
        name = "session.force_spinning_stop"
        if stops:
            assert given.get_session_config_entry(name) == "1"
        else:
            with pytest.raises(RuntimeError, match="does not have config"):
                given.get_session_config_entry(name)
