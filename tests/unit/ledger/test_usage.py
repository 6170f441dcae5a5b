"""Sums by bucket and group, exact to the last digit."""

from decimal import Decimal

import pytest

from maas.ledger.books import Books
from maas.ledger.entries import Entry, Exactness, Payer
from maas.ledger.usage import UsageQuery, UsageReader
from maas.store.records import LimitScope

DAY = 86_400.0


def _entry(
    name: str, at: float, *, project: str = "p1", model: str = "m", amount: str = "0.1", base=""
):
    return Entry(
        id=name,
        at=at,
        payer=Payer("o", project, f"key-{project}"),
        request_id=name,
        endpoint="/v1/completions",
        model_id=model,
        tier="default",
        price_id="x",
        currency="USD",
        amount=Decimal(amount),
        exactness=Exactness.EXACT,
        num_requests=1,
        input_tokens=10,
        cached_tokens=4,
        output_tokens=3,
        base_model_id=base,
    )


@pytest.fixture
def reader(database, clock):
    books = Books(database, clock)
    entries = [
        _entry("a", 10.0),
        _entry("b", DAY - 0.001, project="p2", amount="0.000000001"),
        _entry("c", DAY, model="n"),
        _entry("d", 2 * DAY + 5),
    ]
    assert books.charge(entries) == 4
    assert books.charge(entries) == 0
    return UsageReader(database, clock)


def test_buckets_begin_at_multiples_of_their_width(reader):
    rows = reader.read(UsageQuery(0, 3 * DAY))
    assert [(row.start, row.counts["num_requests"]) for row in rows] == [
        (0, 2),
        (DAY, 1),
        (2 * DAY, 1),
    ]
    assert rows[0].amount == Decimal("0.100000001")


def test_the_end_is_exclusive_and_the_start_is_not(reader):
    rows = reader.read(UsageQuery(DAY, 2 * DAY, width_s=3600))
    assert [row.start for row in rows] == [DAY]


def test_groups_and_filters(reader):
    rows = reader.read(UsageQuery(0, DAY, group_by=("project_id", "model")))
    assert [(row.groups["project_id"], row.counts["cached_tokens"]) for row in rows] == [
        ("p1", 4),
        ("p2", 4),
    ]
    rows = reader.read(UsageQuery(0, 3 * DAY, where={"model": ["n"]}))
    assert [row.start for row in rows] == [DAY]


def test_what_a_model_spent_has_what_was_tuned_from_it_as_its_limits_count_it(
    reader, database, clock
):
    asked = ((LimitScope.MODEL, "m"), (LimitScope.PROJECT, "p1", "m"))
    before = [reader.spent_this_month(*what) for what in asked]
    now = clock.now()
    entries = [_entry("own", now), _entry("tuned", now, model="ft:m:x", amount="0.02", base="m")]
    Books(database, clock).charge(entries)
    after = [reader.spent_this_month(*what) for what in asked]
    assert after == [amount + Decimal("0.12") for amount in before]
    assert reader.spent_this_month(LimitScope.MODEL, "ft:m:x") == Decimal("0.02")
