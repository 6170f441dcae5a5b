"""The verdict on memory: growth is counted from the first tenth of the requests."""

import pytest

from benchmarks.gateway.memory import Reading, growth, table


def _readings(*mib: float) -> list[Reading]:
    return [Reading(n * 1000, round(m * 2**20), round(m * 2**20)) for n, m in enumerate(mib)]


def test_what_the_first_tenth_takes_is_no_growth():
    assert growth(_readings(50, 100, 130, 104)) == pytest.approx(0.04)


@pytest.mark.parametrize(("last", "verdict"), [(104, "| met |"), (106, "| MISSED |")])
def test_the_goal_is_five_per_cent(last, verdict):
    assert verdict in table(_readings(50, 100, last))
