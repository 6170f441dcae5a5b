"""Pauses between starts of what keeps failing, and when its failures are forgiven."""

import pytest

from maas.serving.backoff import backoff_s
from maas.serving.steady import SteadyState


@pytest.mark.parametrize(
    ("num_failures", "pause_s"), [(0, 2), (1, 2), (2, 4), (3, 8), (10, 60), (100_000, 60)]
)
def test_pauses_double_up_to_their_bound_however_long_it_goes_on(num_failures, pause_s):
    assert backoff_s(num_failures, first_s=2.0, max_s=60.0) == pause_s


def test_what_does_not_change_for_long_enough_is_steady():
    steady = SteadyState(after_s=60)
    seen = [steady.is_steady("dep-1", ("a", 1), now) for now in (100, 159, 160, 200)]
    assert seen == [False, False, True, True]


def test_a_change_starts_the_time_anew():
    steady = SteadyState(after_s=60)
    assert not steady.is_steady("dep-1", ("a", 1), 0)
    assert not steady.is_steady("dep-1", ("b", 1), 60)
    assert not steady.is_steady("dep-1", ("b", 1), 119)
    assert steady.is_steady("dep-1", ("b", 1), 120)


def test_each_deployment_has_its_own_time_and_forgetting_ends_it():
    steady = SteadyState(after_s=60)
    for name in ("dep-1", "dep-2"):
        steady.is_steady(name, "same", 0)
    steady.forget("dep-1")
    assert not steady.is_steady("dep-1", "same", 60)
    assert steady.is_steady("dep-2", "same", 60)
