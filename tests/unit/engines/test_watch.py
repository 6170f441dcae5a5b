from maas.engines.contract import EngineLoad
from maas.engines.watch import HangDetector, observed


def busy(num_tokens: float | None) -> EngineLoad:
    return EngineLoad(num_running=1, num_tokens_total=num_tokens)


def test_engine_that_holds_requests_without_a_token_is_hung():
    detector = HangDetector(timeout_s=10)
    for second in range(10):
        detector.saw(busy(5.0), second)
        assert detector.reason is None
    detector.saw(busy(5.0), 10)
    assert detector.reason == "hung: 1 running and 0 waiting requests, no token for 10 s"


def test_a_token_within_the_time_is_enough():
    detector = HangDetector(timeout_s=10)
    detector.saw(busy(5.0), 0)
    detector.saw(busy(6.0), 9)
    detector.saw(busy(6.0), 18)
    assert detector.reason is None


def test_idle_engine_never_hangs_and_its_first_request_has_the_whole_time():
    detector = HangDetector(timeout_s=10)
    detector.saw(EngineLoad(num_tokens_total=5.0), 0)
    detector.saw(EngineLoad(num_tokens_total=5.0), 1000)
    detector.saw(busy(5.0), 1009)
    assert detector.reason is None


def test_waiting_requests_count_too():
    detector = HangDetector(timeout_s=10)
    for now in (0, 10):
        detector.saw(EngineLoad(num_waiting=3, num_tokens_total=5.0), now)
    assert detector.reason is not None


def test_engine_that_cannot_count_tokens_is_judged_by_its_answers_alone():
    detector = HangDetector(timeout_s=10)
    for now in (0, 100):
        detector.saw(busy(None), now)
    assert detector.reason is None


def test_silence_counts_from_the_last_answer():
    detector = HangDetector(timeout_s=10)
    detector.saw(EngineLoad(), 100)
    detector.missed(109)
    assert detector.reason is None
    detector.missed(110)
    assert detector.reason == "hung: no answer for 10 s"


def test_an_answer_ends_the_suspicion():
    detector = HangDetector(timeout_s=10)
    detector.missed(0)
    detector.missed(10)
    assert detector.reason
    detector.saw(EngineLoad(), 11)
    assert detector.reason is None


def _watched(loads_and_cpu, *, num_unanswered: int, timeout_s: float = 10) -> str | None:
    """Return the verdict after one sample a second."""
    detector = HangDetector(timeout_s=timeout_s)
    for second, (load, cpu_s) in enumerate(loads_and_cpu):
        detector.saw(observed(load, num_unanswered=num_unanswered, cpu_s=cpu_s), second)
    return detector.reason


def test_engine_that_counts_no_tokens_hangs_when_a_probe_waits_and_nothing_computes():
    # What its front end uses for answering /health is no work.
    idle_cpu = [(EngineLoad(), 20.1 + 0.002 * second) for second in range(12)]
    assert _watched(idle_cpu, num_unanswered=1) is not None
    assert _watched(idle_cpu, num_unanswered=0) is None


def test_engine_that_counts_no_tokens_is_busy_while_it_computes():
    computing = [(EngineLoad(), 20.0 + 0.5 * second) for second in range(100)]
    assert _watched(computing, num_unanswered=1) is None


def test_tokens_count_for_more_than_processor_time():
    spinning = [(EngineLoad(num_tokens_total=5.0), float(second)) for second in range(12)]
    assert _watched(spinning, num_unanswered=1) is not None
