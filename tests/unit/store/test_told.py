"""What a device was told is kept as text: its newest bundles, each with its highest attempt."""

from maas.store.rollout_rules import Wish
from maas.store.told import MAX_TOLD, Told, kept, read_told, with_wish


def test_what_was_told_is_read_as_it_was_kept():
    told = {}
    for wish in (Wish("one"), Wish("two", 3, "rollout-a_b"), Wish("one")):
        told = with_wish(told, wish)
    assert told == {"two": Told(3, "rollout-a_b"), "one": Told()}
    assert kept(told) == ["two@3@rollout-a_b", "one"]
    assert read_told(kept(told)) == told


def test_being_bound_to_a_bundle_takes_no_attempt_back():
    told = with_wish({}, Wish("one", 2, "rollout-1"))
    told = with_wish(told, Wish("one"))
    assert told == {"one": Told(2, "rollout-1")}
    assert with_wish(told, Wish("one", 3, "rollout-2")) == {"one": Told(3, "rollout-2")}


def test_only_the_newest_are_kept():
    told = {}
    for number in range(MAX_TOLD + 3):
        told = with_wish(told, Wish(str(number)))
    assert list(told) == [str(number) for number in range(3, MAX_TOLD + 3)]
