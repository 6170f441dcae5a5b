"""``maas price``, as a script uses it."""

import pytest

from maas.core.errors import ConfigError, NotFound


def test_price_keeps_what_is_not_given_and_every_version(maas):
    maas("price", "set", "tiny", "--input", "2", "--output", "6")
    changed = maas("price", "set", "tiny", "--input", "3", "--gpu-second", "0.001")
    assert (changed["input_per_million"], changed["output_per_million"]) == ("3", "6")
    assert changed["gpu_second"] == "0.001"
    versions = maas("price", "list", "--model", "tiny")["prices"]
    assert [version["input_per_million"] for version in versions] == ["2", "3"]


def test_off_peak_hours_are_set_and_ended(maas):
    made = maas("price", "set", "tiny", "--off-peak-factor", "0.5", "--off-peak-hours", "22-6")
    assert (made["off_peak_factor"], made["off_peak_hours"]) == ("0.5", [22, 6])
    assert maas("price", "set", "tiny", "--off-peak-hours", "none")["off_peak_hours"] is None


@pytest.mark.parametrize("hours", ["5-5", "05-5", "24-6", "22-25", "22", "night"])
def test_hours_that_are_none_are_refused(maas, hours):
    with pytest.raises(ConfigError, match="off-peak-hours"):
        maas("price", "set", "tiny", "--off-peak-factor", "0.5", "--off-peak-hours", hours)


def test_tier_has_a_price_of_its_own(maas):
    maas("price", "set", "tiny", "--input", "2")
    maas("price", "set", "tiny", "--tier", "batch", "--input", "1")
    listed = maas("price", "list", "--model", "tiny")["prices"]
    assert {item["tier"]: item["input_per_million"] for item in listed} == {
        "default": "2",
        "batch": "1",
    }


def test_reset_goes_back_to_the_card(maas):
    card = maas("price", "list", "--model", "smollm2-135m-instruct")["prices"][0]
    maas("price", "set", card["model"], "--input", "9")
    assert maas("price", "reset", card["model"]) == card
    with pytest.raises(NotFound, match="card's own"):
        maas("price", "reset", card["model"])


def test_model_without_a_card_is_free_after_a_reset(maas):
    maas("price", "set", "tiny", "--input", "2")
    price = maas("price", "reset", "tiny")
    assert (price["model"], price["tier"], price["input_per_million"]) == ("tiny", "default", "0")
