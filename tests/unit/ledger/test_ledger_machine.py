"""The ledger as a machine driven at random: reserve, settle, post, kill, recover, in any order."""

import asyncio
import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import func, select

from maas.core.errors import LimitExceeded, StoreUnavailable
from maas.core.ids import new_id
from maas.ledger import wal
from maas.ledger.books import Books
from maas.ledger.caps import Amounts, Cap, Metric
from maas.ledger.entries import Exactness, Opened, Payer
from maas.ledger.prices import Price, Quantity, Rates
from maas.ledger.recovery import recover
from maas.ledger.spender import Spender
from maas.ledger.wal import WriteAheadLog
from maas.store.database import Database
from maas.store.ledger_tables import CounterRow, GrantRow, JournalRow
from maas.store.money import from_nanos, to_nanos
from tests.conftest import MovableClock

# Makes a store of its own for each run.
Stores = Callable[[Path], contextlib.AbstractContextManager[str]]
PAYER = Payer("org-1", "proj-1", "key-1")
PRICE = Price("price-1", "m", "default", "USD", Rates(Decimal(1000), Decimal(1000), Decimal(1000)))
BUDGET = Decimal("0.5")
CAPS = (
    Cap(Metric.MONTHLY_BUDGET, "project:proj-1", to_nanos(BUDGET)),
    Cap(Metric.TOKENS_PER_DAY, "key:key-1", 700),
    Cap(Metric.TOKENS_PER_DAY, "key:key-1/model:m", 600),
    Cap(Metric.REQUESTS_PER_MINUTE, "organization:org-1", 9),
    Cap(Metric.CONCURRENT_REQUESTS, "model:m", 4),
)


class FlakyBooks(Books):
    """Books behind a connection that may break between a commit and its answer."""

    _is_broken = False

    @contextlib.contextmanager
    def losing_answers(self) -> Iterator[None]:
        self._is_broken = True
        yield
        self._is_broken = False

    def post(self, *arguments, **places) -> None:
        super().post(*arguments, **places)
        if self._is_broken:
            raise StoreUnavailable("the connection is gone")


class LedgerMachine(RuleBasedStateMachine):
    """Two or more spenders over one store; what was settled must be in the journal in the end."""

    spenders = Bundle("spenders")
    held = Bundle("held")

    def __init__(self, stores: Stores) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.store = contextlib.ExitStack()
        self.database = Database(self.store.enter_context(stores(self.folder)))
        self.clock = MovableClock()
        self.books = FlakyBooks(self.database, self.clock)
        self.runner = asyncio.Runner()
        self.threads = ThreadPoolExecutor(8)
        self.runner.get_loop().set_default_executor(self.threads)
        self.alive: set[Spender] = set()
        self.settled: dict[str, Decimal] = {}
        self.dropped: set[str] = set()
        self.logged: dict[str, int] = {}
        # Segments so short that logs rotate.
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(wal, "MAX_SEGMENT_BYTES", 1500)

    def teardown(self) -> None:
        try:
            self.check()
        finally:
            # Also after a failure: the patch must not outlive this test.
            self.runner.close()
            self.patch.undo()
            self.database.close()
            self.store.close()
            shutil.rmtree(self.folder)

    def check(self) -> None:
        for spender in list(self.alive):
            self.runner.run(spender.stop())
        self.recover()
        with self.database.read() as session:
            journal = dict(session.execute(select(JournalRow.id, JournalRow.amount)).all())
            outputs = dict(session.execute(select(JournalRow.id, JournalRow.output_tokens)).all())
            leased = session.scalars(select(CounterRow.leased)).all()
        assert self.settled.items() <= journal.items()
        assert self.dropped.isdisjoint(journal)
        for id_ in self.logged.keys() - self.settled.keys() - self.dropped:
            # What was open when its gateway was killed: at least what was logged is charged.
            assert outputs.get(id_, 0) >= self.logged[id_]
        assert set(leased) <= {0}

    @rule(target=spenders)
    def open(self) -> Spender:
        spender = Spender(
            self.books,
            WriteAheadLog(self.folder / "wal", new_id("spender")),
            self.clock,
            wait_s=0.0,
        )
        self.runner.run(spender.start())
        self.alive.add(spender)
        return spender

    @rule(
        target=held,
        spender=spenders,
        input_tokens=st.integers(1, 60),
        most=st.integers(1, 200),
        model=st.sampled_from([("m", ""), ("ft:m:tuned", "m")]),
    )
    def reserve(self, spender: Spender, input_tokens: int, most: int, model: tuple[str, str]):
        if spender not in self.alive:
            return multiple()
        now = self.clock.now()
        opened = Opened(
            spender.next_id(), now, PAYER, "req", "/v1/completions", model[0], "default", PRICE.id,
            input_tokens, model[1],
        )  # fmt: skip
        cost = PRICE.highest_cost(input_tokens=input_tokens, output_tokens=most, at=now)
        account = spender.account(CAPS, now)
        amounts = Amounts(1, input_tokens + most, to_nanos(cost), 1)
        try:
            reservation = self.runner.run(spender.reserve(opened, PRICE, account, amounts))
        except LimitExceeded:
            return multiple()
        return (spender, reservation, input_tokens, most)

    @rule(what=consumes(held), share=st.floats(0, 1))
    def settle(self, what, share: float) -> None:
        spender, reservation, input_tokens, most = what
        if spender in self.alive:
            quantity = Quantity(1, input_tokens=input_tokens, output_tokens=int(most * share))
            entry = spender.settle(reservation, quantity, Exactness.EXACT)
            self.settled[entry.id] = entry.amount

    @rule(what=held, share=st.floats(0, 1))
    def deliver(self, what, share: float) -> None:
        spender, reservation, _, most = what
        if spender in self.alive:
            num_delivered = max(reservation.count_delivered(), int(most * share))
            reservation.count_delivered = lambda: num_delivered

    @rule(what=consumes(held))
    def drop(self, what) -> None:
        spender, reservation, *_ = what
        if spender in self.alive:
            spender.drop(reservation)
            self.dropped.add(reservation.opened.id)

    @rule(spender=spenders)
    def post(self, spender: Spender) -> None:
        if spender in self.alive:
            self.runner.run(spender.flush())
            for reservation in spender._open.values():
                self.logged[reservation.opened.id] = reservation.count_delivered()

    @rule(spender=spenders)
    def post_and_lose_the_answer(self, spender: Spender) -> None:
        if spender in self.alive:
            with self.books.losing_answers():
                self.runner.run(spender.flush())

    @rule(spender=consumes(spenders))
    def kill(self, spender: Spender) -> None:
        if spender in self.alive:
            self.alive.remove(spender)
            for task in spender._tasks:
                task.cancel()
            self.end_threads()
            # What the kernel does for a killed process: its files are closed, its lock is free.
            spender._wal.close(delete=False)

    def end_threads(self) -> None:
        """Let what threads write come to its end: a process that is killed has none that go on."""
        ending, self.threads = self.threads, ThreadPoolExecutor(8)
        self.runner.get_loop().set_default_executor(self.threads)
        ending.shutdown(wait=True)

    @rule()
    def recover(self) -> None:
        recover(self.folder / "wal", self.books, lambda _: PRICE)

    @rule(seconds=st.sampled_from([0.5, 2.0, 61.0, 86_400.0]))
    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @invariant()
    def no_cap_is_passed_and_the_journal_is_what_is_used(self) -> None:
        caps = {(cap.metric.value, cap.subject): cap for cap in CAPS}
        with self.database.read() as session:
            counters = session.scalars(select(CounterRow)).all()
            granted = dict(
                session.execute(
                    select(GrantRow.counter_key, func.sum(GrantRow.amount)).group_by(
                        GrantRow.counter_key
                    )
                ).all()
            )
            journal = session.scalars(select(JournalRow)).all()
        for counter in counters:
            metric, _label, subject = counter.key.split("/", 2)
            cap = caps[metric, subject]
            assert counter.used + counter.leased <= cap.amount
            assert counter.leased == granted.get(counter.key, 0)
            # Every request is one of them all: the only models are one and what was tuned from it.
            rows = [row for row in journal if cap.window(row.at).key == counter.key]
            if metric == Metric.MONTHLY_BUDGET.value:
                assert from_nanos(counter.used) == sum((row.amount for row in rows), Decimal(0))
            if metric == Metric.TOKENS_PER_DAY.value:
                assert counter.used == sum(row.input_tokens + row.output_tokens for row in rows)


@contextlib.contextmanager
def _sqlite(folder: Path) -> Iterator[str]:
    url = f"sqlite:///{folder / 'maas.db'}"
    database = Database(url)
    database.migrate()
    database.close()
    yield url


@pytest.mark.parametrize(("kind", "num_examples"), [("sqlite", 40), ("postgres", 15)])
def test_ledger_driven_at_random_keeps_its_promises(kind, num_examples, request):
    phases = set(Phase)
    if kind == "sqlite":
        stores: Stores = _sqlite
    else:
        # What fails on both is made smaller there, and faster.
        phases.remove(Phase.shrink)
        server = request.getfixturevalue("postgres")

        def stores(_: Path) -> contextlib.AbstractContextManager[str]:
            return server.migrated()

    run_state_machine_as_test(
        lambda: LedgerMachine(stores),
        settings=settings(
            max_examples=num_examples,
            stateful_step_count=30,
            deadline=None,
            phases=phases,
            suppress_health_check=list(HealthCheck),
        ),
    )
