"""Spenders killed at random: the cap holds, nothing is lost, nothing is charged twice."""

import random
import subprocess
import sys
import time
from decimal import Decimal

from sqlalchemy import func, select

from maas.core.clock import SystemClock
from maas.ledger import recovery
from maas.ledger.books import Books
from maas.store.ledger_tables import CounterRow, GrantRow, JournalRow
from maas.store.money import from_nanos
from tests.chaos.ledger_worker import BUDGET, PRICE

NUM_KILLS = 30
NUM_AT_ONCE = 2


def _start(database, folder, number: int, outputs: list):
    outputs.append(folder / f"{number}.out")
    command = [sys.executable, "-m", "tests.chaos.ledger_worker"]
    url = database.engine.url.render_as_string(hide_password=False)
    with outputs[-1].open("wb") as output:
        return subprocess.Popen([*command, url, str(folder / "wal"), f"gw-{number}"], stdout=output)


def _acknowledged(outputs) -> dict[str, Decimal]:
    found: dict[str, Decimal] = {}
    for path in outputs:
        for line in path.read_text().splitlines():
            name, _, amount = line.partition(" ")
            if amount:
                assert name not in found
                found[name] = Decimal(amount)
    return found


def _check(database, *, outputs=None) -> Decimal:
    with database.read() as session:
        counter = session.scalars(select(CounterRow)).one_or_none()
        spent = session.scalar(select(func.sum(JournalRow.amount))) or Decimal(0)
        granted = session.scalar(select(func.sum(GrantRow.amount))) or 0
        journal = dict(session.execute(select(JournalRow.id, JournalRow.amount)).all())
    assert spent <= BUDGET
    if counter is not None:
        assert from_nanos(counter.used) == spent
        assert counter.leased == granted
        assert from_nanos(counter.used + counter.leased) <= BUDGET
    for name, amount in _acknowledged(outputs or ()).items():
        assert journal[name] == amount
    return spent


def test_spenders_killed_at_random_lose_nothing_and_charge_nothing_twice(database, tmp_path):
    books = Books(database, SystemClock())
    random_ = random.Random(7)
    outputs: list = []
    running: list[subprocess.Popen] = []
    num_kills = 0
    started = time.monotonic()
    while num_kills < NUM_KILLS and time.monotonic() - started < 240:
        while len(running) < NUM_AT_ONCE:
            running.append(_start(database, tmp_path, len(outputs), outputs))
        time.sleep(1.0 + random_.random())
        victim = running.pop(random_.randrange(len(running)))
        victim.kill()
        victim.wait()
        num_kills += 1
        recovery.recover(tmp_path / "wal", books, lambda _: PRICE)
        _check(database)
    for process in running:
        process.kill()
        process.wait()
    recovery.recover(tmp_path / "wal", books, lambda _: PRICE)
    _check(database)
    # Nothing leaked either: the last one alone can spend the budget to its end.
    assert _start(database, tmp_path, len(outputs), outputs).wait(60) == 0
    spent = _check(database, outputs=outputs)
    assert num_kills == NUM_KILLS
    assert BUDGET - Decimal("0.02") < spent <= BUDGET
    with database.read() as session:
        assert session.scalars(select(GrantRow)).all() == []
    assert list((tmp_path / "wal").iterdir()) == []
    # What nobody acknowledged is charged too, as it was seen to go out, and marked.
    with database.read() as session:
        marks = set(session.scalars(select(JournalRow.exactness)))
    assert marks == {"exact", "estimated"}
