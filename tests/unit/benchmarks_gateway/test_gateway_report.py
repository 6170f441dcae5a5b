"""The gateway benchmark's arithmetic by hand."""

from benchmarks.gateway.report import LITELLM, OURS, ROUTER, Figures, goals, table


def figures(requests_per_core: float, us_per_chunk: float, reads: float = 1.0) -> Figures:
    return Figures(requests_per_core, us_per_chunk, reads, requests_per_s=1000.0)


def test_goals_are_medians_of_ratios_within_a_round():
    rounds = {
        OURS: [figures(50, 10), figures(60, 10), figures(300, 10)],
        ROUTER: [figures(100, 10), figures(100, 5), figures(100, 20)],
    }
    requests, chunks = goals(rounds)
    assert (requests.measured, requests.is_met) == (0.6, True)
    assert (chunks.measured, chunks.is_met) == (1.0, True)


def test_missed_goals_say_so():
    rounds = {OURS: [figures(49, 11)], ROUTER: [figures(100, 10)], LITELLM: [figures(2, 900)]}
    assert [goal.is_met for goal in goals(rounds)] == [False, False, False]
    assert table(rounds).count("MISSED") == 3


def test_peers_that_were_not_measured_have_no_goals():
    assert goals({OURS: [figures(1, 1)]}) == []


def test_chunks_put_together_on_the_way_are_marked():
    assert "merged" in table({OURS: [figures(1, 1, reads=0.5)]})
    assert "merged" not in table({OURS: [figures(1, 1, reads=1.0)]})
