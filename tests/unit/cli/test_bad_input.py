"""What commands refuse is one clear line, and changes nothing."""

import pytest

from maas.core.errors import MaasError

_PROJECT = ("limit", "set", "project", "default")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((*_PROJECT, "--monthly-budget", "nan"), "want a number"),
        ((*_PROJECT, "--monthly-budget", "inf"), "want a number"),
        ((*_PROJECT, "--monthly-budget", "0.0000000001"), "9 decimal places"),
        (("limit", "set", "model", " ", "--requests-per-minute", "1"), "model is empty"),
        (("audit", "export", "--out", "no/such/folder"), "cannot be written"),
        (("key", "create", "--name", "k", "--expires-in", "999999999999d"), "year 3000"),
        (("key", "create", "--name", " "), "name is empty"),
        (("project", "create", ""), "name is empty"),
        (("project", "modify", "default", "--name", ""), "name is empty"),
        (("org", "create", ""), "name is empty"),
        (("org", "add-user", "nobody"), "not an e-mail address"),
        (("webhook", "create", "", "https://hooks.example.org"), "name is empty"),
        (("usage", "--since", "0d"), "more than nothing"),
        (("usage", "--since", "99999999d"), "at most 3650d"),
        (("price", "list", "--model", "nowhere"), "never had a price"),
        (("price", "set", "tiny"), "at least one number"),
        (("price", "set", " ", "--input", "1"), "model id is empty"),
        (("price", "set", "tiny", "--input", "1e30"), "--input"),
        (("price", "set", "tiny", "--storage", "nan"), "--storage"),
        (("price", "set", "tiny", "--input", "1", "--currency", "dollar"), "ISO 4217"),
        (("price", "set", "tiny", "--off-peak-factor", "2"), "0 to 1"),
        (("price", "set", "tiny", "--off-peak-hours", "25-3"), "hours of UTC"),
        (("price", "set", "tiny", "--off-peak-hours", "3-3"), "hours of UTC"),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, tuple) else "",
)
def test_refusal_says_what_was_wrong(maas, arguments, words):
    with pytest.raises(MaasError, match=words):
        maas(*arguments)
    assert maas("limit", "list")["limits"] == []


def test_unknown_tier_is_refused(maas):
    with pytest.raises(AssertionError, match="background"):
        maas("price", "set", "tiny", "--tier", "gold", "--input", "1")
