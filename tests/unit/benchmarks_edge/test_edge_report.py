"""Each goal of the edge benchmark is said to be met or missed, in one line with its figures."""

import pytest

from benchmarks.edge.__main__ import Row, score_text, size_text


@pytest.mark.parametrize(
    ("ours", "said"), [(150.0, "1.50x | >= 2.0x missed"), (200.0, "2.00x | >= 2.0x met")]
)
def test_a_speed_meets_its_goal_from_the_goal_on(ours: float, said: str) -> None:
    assert Row("decode", ours, 100.0, 2.0).text() == f"| decode | {ours:.0f} | 100 | {said} |"


@pytest.mark.parametrize(("ours", "verdict"), [(100, "missed"), (101, "met"), (102, "met")])
def test_the_bundle_answers_no_fewer_tasks(ours: int, verdict: str) -> None:
    assert score_text(ours, 101, 181) == f"tasks: {ours} of 181 beside 101, no fewer: {verdict}"


@pytest.mark.parametrize(
    ("ours", "verdict"),
    [(97_900_000, "met"), (98_000_000, "missed"), (98_100_000, "missed")],
)
def test_the_bundle_is_smaller_than_the_other_file(ours: int, verdict: str) -> None:
    said = f"size: {ours / 1e6:.1f} MB beside 98.0 MB, smaller: {verdict}"
    assert size_text(ours, 98_000_000) == said
