"""Ids: readable, sortable by time, never the same twice."""

import re
import time

from hypothesis import given
from hypothesis import strategies as st

from maas.core.clock import SystemClock
from maas.core.ids import ALPHABET, _base32, new_id


def test_id_has_its_prefix_and_a_fixed_length():
    assert re.fullmatch(r"key-[0-9a-hjkmnp-z]{19}", new_id("key"))


def test_ids_sort_by_the_time_they_were_made():
    made = []
    for _ in range(5):
        made.append(new_id("x"))
        time.sleep(0.002)
    assert made == sorted(made)


def test_ids_of_one_moment_differ():
    assert len({new_id("x") for _ in range(20_000)}) == 20_000


@given(st.integers(0, 2**45 - 1), st.integers(0, 2**45 - 1))
def test_time_part_sorts_as_its_number(first, second):
    texts = (_base32(first, length=9), _base32(second, length=9))
    assert (texts[0] < texts[1]) == (first < second)
    assert all(digit in ALPHABET for digit in texts[0])


def test_alphabet_leaves_out_what_is_misread():
    assert len(set(ALPHABET)) == 32
    assert not set("ilo") & set(ALPHABET)


def test_system_clock_is_unix_time():
    assert abs(SystemClock().now() - time.time()) < 1
