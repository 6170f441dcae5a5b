"""Autoscaling: requests and tokens, running and waiting, against their targets."""

import pytest

from maas.engines.contract import EngineLoad
from maas.serving.scaling import demand_of, load_metrics, num_replicas_for


def _demand(*loads: EngineLoad) -> float:
    reported: dict[str, dict[int, float]] = {}
    for replica, load in enumerate(loads):
        for name, value in load_metrics(load).items():
            reported.setdefault(name, {})[replica] = value
    return demand_of(reported, target_requests=16)


@pytest.mark.parametrize(
    ("requests", "current", "wanted"),
    [
        (0, 1, 1),
        (16, 1, 1),
        (17, 1, 2),
        (33, 1, 3),
        (500, 1, 4),
        (31, 2, 2),
        (29, 3, 2),
        (31, 3, 3),
        (1, 3, 1),
    ],
)
def test_replicas_follow_the_load_between_their_bounds(requests, current, wanted):
    demand = _demand(EngineLoad(num_running=requests))
    found = num_replicas_for(demand, current=current, min_replicas=1, max_replicas=4)
    assert found == wanted


def test_few_requests_that_fill_the_kv_cache_ask_for_another_replica():
    assert _demand(EngineLoad(num_running=3, kv_cache_usage=0.8)) == pytest.approx(1.0)
    assert _demand(EngineLoad(num_running=3, kv_cache_usage=0.96)) == pytest.approx(1.2)


def test_waiting_requests_count_whole_with_the_tokens_of_running_ones():
    # Two hold 80 % of the cache; the four that wait will hold twice as much again.
    assert _demand(EngineLoad(2, 4, kv_cache_usage=0.8)) == pytest.approx(3.0)
    assert _demand(EngineLoad(0, 32)) == pytest.approx(2.0)


def test_the_larger_of_both_terms_decides_over_all_replicas():
    long, many = EngineLoad(1, 0, kv_cache_usage=0.9), EngineLoad(39, 0, kv_cache_usage=0.1)
    assert _demand(long, many) == pytest.approx(40 / 16)
    assert _demand(long, long, long) == pytest.approx(2.7 / 0.8)


def test_without_any_report_the_minimum_stays():
    demand = demand_of({}, target_requests=16)
    assert num_replicas_for(demand, current=2, min_replicas=2, max_replicas=4) == 2
