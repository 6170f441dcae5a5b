"""Admission: all or nothing, never past a cap, whoever races."""

import asyncio
import threading
import time
from decimal import Decimal

import pytest
from sqlalchemy import func, select

from maas.core.errors import BudgetExceeded, DiskFull, LimitExceeded, Unavailable
from maas.ledger import wal
from maas.ledger.books import Posting, Want
from maas.ledger.caps import Cap, Metric
from maas.ledger.entries import once_id
from maas.ledger.recovery import recover
from maas.ledger.wal import Position
from maas.store.ledger_tables import CounterRow, GrantRow, JournalRow
from maas.store.money import to_nanos

from .conftest import PRICE

PROJECT = "project:proj-1"
RPM = Cap(Metric.REQUESTS_PER_MINUTE, PROJECT, 5)
TPM = Cap(Metric.TOKENS_PER_MINUTE, PROJECT, 100)
CONCURRENT = Cap(Metric.CONCURRENT_REQUESTS, PROJECT, 2)
PER_DAY = Cap(Metric.TOKENS_PER_DAY, PROJECT, 100)


def budget(amount: str) -> Cap:
    return Cap(Metric.MONTHLY_BUDGET, PROJECT, to_nanos(Decimal(amount)))


def _counter(database, metric: Metric) -> tuple[int, int]:
    with database.read() as session:
        row = session.scalars(
            select(CounterRow).where(CounterRow.key.startswith(metric.value))
        ).one()
        return row.used, row.leased


def _spent(database) -> Decimal:
    with database.read() as session:
        return session.scalar(select(func.sum(JournalRow.amount))) or Decimal(0)


async def test_a_request_is_admitted_and_charged_once(desks, database):
    desk = await desks(budget("1"))
    reservation = await desk.ask()
    entry = desk.finish(reservation, output_tokens=5)
    assert entry.amount == Decimal("0.015")
    await desk.spender.flush()
    await desk.spender.flush()
    assert _spent(database) == Decimal("0.015")
    assert _counter(database, Metric.MONTHLY_BUDGET)[0] == to_nanos(Decimal("0.015"))


async def test_the_store_is_asked_for_slices_and_not_for_requests(desks, database, monkeypatch):
    desk = await desks(budget("1000"), Cap(Metric.CONCURRENT_REQUESTS, PROJECT, 100))
    desk.finish(await desk.ask())
    num_transactions = 0

    def counted(open_transaction):
        def begin(*arguments, **options):
            nonlocal num_transactions
            num_transactions += 1
            return open_transaction(*arguments, **options)

        return begin

    for name in ("read", "write"):
        monkeypatch.setattr(database, name, counted(getattr(database, name)))
    for _ in range(1000):
        desk.finish(await desk.ask())
    # What is due twice a second may have come meanwhile, once or twice.
    assert num_transactions < 10
    await desk.spender.flush()
    monkeypatch.undo()
    with database.read() as session:
        assert session.scalar(select(func.count()).select_from(JournalRow)) == 1001


async def test_requests_a_minute_hold_and_come_back_with_the_next_minute(desks, clock):
    desk = await desks(RPM)
    for _ in range(5):
        desk.finish(await desk.ask())
    with pytest.raises(LimitExceeded, match="requests_per_minute of project:proj-1") as refused:
        await desk.ask()
    assert 0 < refused.value.context["retry_after_s"] <= 60
    clock.advance(60)
    await desk.ask()


async def test_a_refused_request_takes_nothing_of_any_limit(desks, database):
    desk = await desks(RPM, PER_DAY)
    for _ in range(3):
        with pytest.raises(LimitExceeded, match="tokens_per_day"):
            await desk.ask(output_tokens=1000)
    for _ in range(5):
        desk.finish(
            await desk.ask(input_tokens=1, output_tokens=1), input_tokens=1, output_tokens=1
        )
    await desk.spender.flush(is_last=True)
    assert _counter(database, Metric.REQUESTS_PER_MINUTE) == (5, 0)
    assert _counter(database, Metric.TOKENS_PER_DAY) == (10, 0)


async def test_tokens_that_were_reserved_and_not_used_come_back(desks):
    desk = await desks(TPM)
    desk.finish(await desk.ask(output_tokens=90), output_tokens=10)
    desk.finish(await desk.ask(output_tokens=70), output_tokens=70)
    with pytest.raises(LimitExceeded):
        await desk.ask(output_tokens=1)


async def test_a_dropped_request_costs_nothing(desks, database):
    desk = await desks(RPM, budget("1"))
    for _ in range(20):
        desk.spender.drop(await desk.ask())
    await desk.spender.flush(is_last=True)
    assert _counter(database, Metric.REQUESTS_PER_MINUTE) == (0, 0)
    assert _spent(database) == 0


async def test_open_requests_are_bounded(desks):
    desk = await desks(CONCURRENT)
    first, _ = await desk.ask(), await desk.ask()
    with pytest.raises(LimitExceeded, match="concurrent_requests"):
        await desk.ask()
    desk.finish(first)
    await desk.ask()


async def test_racing_requests_stop_at_the_budget_exactly(desks, database):
    desk = await desks(budget("2"), wait_s=5)  # a hundred requests of 0.02

    async def race() -> bool:
        try:
            reservation = await desk.ask()
        except BudgetExceeded:
            return False
        await asyncio.sleep(0.001)
        desk.finish(reservation)
        return True

    won = await asyncio.gather(*(race() for _ in range(1000)))
    assert sum(won) == 100
    await desk.spender.flush(is_last=True)
    assert _spent(database) == 2
    assert _counter(database, Metric.MONTHLY_BUDGET) == (to_nanos(Decimal(2)), 0)


async def test_racing_requests_that_use_less_than_they_reserve_go_on(desks, database):
    desk = await desks(budget("2"), wait_s=5)

    async def race() -> bool:
        try:
            reservation = await desk.ask(output_tokens=90)  # reserves 0.1, uses 0.02
        except BudgetExceeded:
            return False
        await asyncio.sleep(0.001)
        desk.finish(reservation)
        return True

    won = await asyncio.gather(*(race() for _ in range(1000)))
    assert 95 < sum(won) <= 100
    await desk.spender.flush()
    assert _spent(database) == sum(won) * Decimal("0.02")


async def test_two_gateways_hold_a_cap_in_total(desks, database):
    one = await desks(budget("2"), name="gw-1", wait_s=5)
    two = await desks(budget("2"), name="gw-2", wait_s=5)

    async def race(desk) -> bool:
        try:
            reservation = await desk.ask()
        except BudgetExceeded:
            return False
        await asyncio.sleep(0.001)
        desk.finish(reservation)
        return True

    won = await asyncio.gather(*(race(desk) for _ in range(300) for desk in (one, two)))
    assert sum(won) == 100
    for desk in (one, two):
        await desk.spender.flush(is_last=True)
    assert _spent(database) == 2


async def test_what_was_used_before_there_was_a_cap_counts(desks):
    free = await desks(name="gw-1")
    free.finish(await free.ask(), output_tokens=70)
    await free.spender.flush()
    capped = await desks(PER_DAY, name="gw-2")
    await capped.ask(output_tokens=10)
    with pytest.raises(LimitExceeded):
        await capped.ask(output_tokens=10)


@pytest.mark.parametrize("is_capped_before", [True, False])
async def test_what_was_tuned_counts_against_its_base_once_it_is_in_the_journal(
    desks, is_capped_before
):
    cap = Cap(Metric.TOKENS_PER_DAY, f"{PROJECT}/model:m", 100)
    desk = await desks(*([cap] if is_capped_before else []))
    desk.finish(await desk.ask(model="ft:m:x", base="m"), output_tokens=70)
    await desk.spender.flush(is_last=True)
    desk.caps = (cap,)
    await desk.ask(output_tokens=10)
    with pytest.raises(LimitExceeded):
        await desk.ask(output_tokens=10)


async def test_a_charge_that_several_make_is_made_once(desks, books, database, folder):
    once = once_id("answer")
    caps = (Cap(Metric.TOKENS_PER_DAY, PROJECT, 1000), budget("9"))
    desks_of_two = [await desks(*caps, name=name) for name in ("gw-1", "gw-2")]
    dead = await desks(*caps, name="gw-3")
    for desk in (*desks_of_two, dead):
        desk.finish(await desk.ask(id_=once))
        desk.finish(await desk.ask())
    for task in dead.spender._tasks:
        task.cancel()
    dead.spender._tasks.clear()
    dead.spender._wal.close(delete=False)
    # In one posting with another, in a posting of its own, and by who finds a dead one's log.
    for desk in desks_of_two:
        await desk.spender.flush(is_last=True)
        desk.finish(await desk.ask(id_=once))
        await desk.spender.flush(is_last=True)
    assert recover(folder, books, lambda _: PRICE) == 1
    with database.read() as session:
        ids = session.scalars(select(JournalRow.id)).all()
    assert len(ids) == len(set(ids)) == 4
    assert once in ids
    assert _spent(database) == 4 * Decimal("0.02")
    assert _counter(database, Metric.TOKENS_PER_DAY) == (80, 0)
    assert _counter(database, Metric.MONTHLY_BUDGET) == (to_nanos(Decimal("0.08")), 0)


async def test_a_charge_that_is_still_counted_is_not_begun_again(desks, database):
    desk = await desks(Cap(Metric.TOKENS_PER_DAY, PROJECT, 1000))
    once = once_id("answer")
    first = await desk.ask(id_=once)
    with pytest.raises(Unavailable, match="is being charged"):
        await desk.ask(id_=once)
    desk.finish(first)
    desk.finish(await desk.ask(id_=once))
    await desk.spender.flush(is_last=True)
    # Nothing stays reserved of what was refused.
    assert _counter(database, Metric.TOKENS_PER_DAY) == (20, 0)


async def test_what_others_use_uncapped_counts_from_then_on(desks):
    capped = await desks(PER_DAY, name="gw-1")
    capped.finish(await capped.ask())
    await capped.spender.flush(is_last=True)
    free = await desks(name="gw-2")
    free.finish(await free.ask(), output_tokens=90)
    await free.spender.flush()
    # What was granted before may be spent still: a slice of a quarter, one request.
    asked = [capped.ask(output_tokens=10) for _ in range(2)]
    answers = await asyncio.gather(*asked, return_exceptions=True)
    assert any(isinstance(answer, LimitExceeded) for answer in answers)


async def test_nothing_is_held_once_all_is_quiet(desks, database):
    desk = await desks(RPM, TPM, CONCURRENT, PER_DAY, budget("9"))
    desk.finish(await desk.ask())
    await desk.spender.stop()
    with database.read() as session:
        assert session.scalars(select(CounterRow.leased)).all() == [0] * 5
        assert session.scalars(select(GrantRow.amount).where(GrantRow.amount > 0)).all() == []


async def test_a_posting_whose_answer_got_lost_is_not_applied_twice(books, clock, database):
    cap = Cap(Metric.MONTHLY_BUDGET, PROJECT, 100)
    window = cap.window(clock.now())
    books.open("one")
    books.open("two")
    (first,) = books.grant("one", [Want(cap, window, 40, 40)])
    idle = Posting(released={window.key: first.amount})
    places = {"since": Position(0, 0), "until": Position(0, 10)}
    books.post("one", idle, **places)
    (again,) = books.grant("one", [Want(cap, window, 40, 40)])
    books.post("one", idle, **places)
    (other,) = books.grant("two", [Want(cap, window, 1, 100)])
    assert again.amount + other.amount <= 100


async def test_each_posting_has_a_position_of_its_own(desks, monkeypatch, clock):
    desk = await desks(budget("1"))
    desk.spender.drop(await desk.ask())
    seen = []
    post = desk.spender._books.post

    def watched(spender_id, posting, *, since, until):
        seen.append((since, until))
        post(spender_id, posting, since=since, until=until)

    monkeypatch.setattr(desk.spender._books, "post", watched)
    await desk.spender.flush()
    clock.advance(2)
    await desk.spender.flush()  # gives back, and charges nothing
    assert seen
    assert all(since < until for since, until in seen)
    assert len({until for _, until in seen}) == len(seen)


async def test_a_new_segment_knows_what_open_streams_delivered(desks, monkeypatch, folder):
    monkeypatch.setattr(wal, "MAX_SEGMENT_BYTES", 100)
    desk = await desks(budget("10"))
    reservation = await desk.ask(output_tokens=500)
    reservation.count_delivered = lambda: 321
    for _ in range(2):
        # What is settled is posted, and the segments before it are deleted.
        desk.finish(await desk.ask())
        await desk.spender.flush()
    position = desk.spender._wal.position
    assert not (folder / "gw-1.0.wal").exists()
    ((_, num_delivered),) = wal.read(folder, "gw-1", position).orphans
    assert num_delivered == 321
    desk.finish(reservation)


async def test_charges_are_posted_though_the_logs_disk_is_full(desks, database, monkeypatch):
    desk = await desks(budget("1"))
    settled, streaming = await desk.ask(), await desk.ask()
    desk.finish(settled)
    streaming.count_delivered = lambda: 3

    def full(_: object) -> None:
        raise DiskFull("no space left")

    monkeypatch.setattr(desk.spender._wal, "append", full)
    await desk.spender.flush()
    assert _spent(database) == Decimal("0.02")
    monkeypatch.undo()
    await desk.spender.flush()
    assert streaming.num_logged == 3
    desk.finish(streaming)


async def test_grants_of_past_minutes_are_forgotten(desks, books, database, clock):
    desk = await desks(RPM, TPM)
    for _ in range(30):
        desk.finish(await desk.ask())
        await desk.spender.flush()
        clock.advance(60)
    books.sweep()
    with database.read() as session:
        assert session.scalar(select(func.count()).select_from(GrantRow)) <= 4


async def test_requests_that_wait_in_vain_leave_nothing(desks):
    desk = await desks(budget("0.03"), wait_s=0.6)
    held = await desk.ask()
    asked = [desk.ask() for _ in range(20)]
    refused = await asyncio.gather(*asked, return_exceptions=True)
    assert {type(error) for error in refused} == {BudgetExceeded}
    assert not desk.spender._watching
    desk.spender.drop(held)


async def test_what_the_dead_hold_is_not_waited_for(desks, clock, monkeypatch):
    dead = await desks(budget("0.02"), name="dead")
    await dead.ask()
    for task in dead.spender._tasks:
        task.cancel()
    clock.advance(120)
    desk = await desks(budget("0.02"), name="alive", wait_s=30)
    async with asyncio.timeout(5):
        with pytest.raises(BudgetExceeded):
            await desk.ask()


async def test_what_lies_idle_with_another_gateway_is_waited_for(desks, database, clock):
    hundred = Cap(Metric.REQUESTS_PER_MINUTE, PROJECT, 100)
    idle, busy = [await desks(hundred, name=name, wait_s=10) for name in ("idle", "busy")]

    async def tick() -> None:
        while True:
            await asyncio.sleep(0.05)
            clock.advance(0.05)

    ticking = asyncio.create_task(tick())
    idle.finish(await idle.ask())
    assert _counter(database, Metric.REQUESTS_PER_MINUTE)[1] > 1
    for _ in range(99):
        busy.finish(await busy.ask())
    started = time.monotonic()
    with pytest.raises(LimitExceeded):
        await busy.ask()
    assert time.monotonic() - started < 1
    ticking.cancel()


async def test_the_rest_of_a_limit_is_seen_though_another_gateway_used_it(desks):
    first, second = [await desks(RPM, name=name) for name in ("first", "second")]
    first.finish(await first.ask())
    for _ in range(3):
        second.finish(await second.ask())
    for desk in (second, first):
        await desk.spender.flush()
    (piece,) = first.spender.account(first.caps, first.clock.now()).slices
    assert piece.free + piece.remaining <= 2


async def test_a_grant_is_newer_than_what_was_read_before_it(desks, books, monkeypatch):
    desk = await desks(RPM)
    desk.finish(await desk.ask())
    has_read, may_go_on = threading.Event(), threading.Event()
    read = books.claimed

    def read_slowly(keys):
        claimed = read(keys)
        has_read.set()
        assert may_go_on.wait(10)
        return claimed

    monkeypatch.setattr(books, "claimed", read_slowly)
    looking = asyncio.create_task(desk.spender.flush())
    assert await asyncio.to_thread(has_read.wait, 10)
    for _ in range(3):
        desk.finish(await desk.ask())
    may_go_on.set()
    await looking
    (piece,) = desk.spender.account(desk.caps, desk.clock.now()).slices
    assert piece.free + piece.remaining == 1


async def test_who_posts_at_the_same_time_does_not_close_the_books(desks, books, monkeypatch):
    desk = await desks()
    post, calls, is_late = books.post, [], threading.Event()

    def post_in_turn(*arguments, **places) -> None:
        calls.append(places["since"])
        if len(calls) == 2:
            # Of two that post a batch the second comes to the store after the batch that follows.
            is_late.wait(1)
        post(*arguments, **places)
        if len(calls) == 3:
            is_late.set()

    monkeypatch.setattr(books, "post", post_in_turn)
    desk.finish(await desk.ask())
    first, second = (asyncio.create_task(desk.spender.flush()) for _ in range(2))
    await first
    desk.finish(await desk.ask())
    await desk.spender.flush()
    await second
    desk.finish(await desk.ask())
