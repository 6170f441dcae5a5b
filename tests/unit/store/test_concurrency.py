"""Many threads and many processes on one store: nothing is lost and nothing is done twice."""

import json
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest
from sqlalchemy import select

from maas.core.clock import SystemClock
from maas.store.aliases import AliasRepository
from maas.store.database import Database
from maas.store.keys import KeyRepository
from maas.store.leases import LeaseRepository
from maas.store.state import StateReader, ensure_project
from maas.store.tables import AliasRow, RevisionRow
from tests.conftest import REPOSITORY

# Takes the lease again and again, holds it for a moment, lets it run out or gives it back; prints
# since when it knew that it had the lease, and until when nobody else could have it.
HOLDER = """
import json, random, sys, time
from maas.core.clock import SystemClock
from maas.store.database import Database
from maas.store.leases import LeaseRepository
url, name, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
random.seed(name)
database = Database(url)
leases, terms, end = LeaseRepository(database, SystemClock()), [], time.time() + seconds
while time.time() < end:
    asked = time.time()
    if leases.acquire("leader", name, ttl_s=0.05):
        answered = time.time()
        if answered < asked + 0.05:
            terms.append((answered, asked + 0.05))
        if random.random() < 0.5:
            time.sleep(random.uniform(0, 0.02))
            terms = [(known, min(until, time.time())) for known, until in terms]
            leases.release("leader", name)
    time.sleep(random.uniform(0, 0.02))
database.close()
print(json.dumps(terms))
"""


def test_lease_has_one_holder_at_a_time_among_processes(store_url, database):
    holders = [
        subprocess.Popen(
            [sys.executable, "-c", HOLDER, store_url, name, "3"],
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in ("a", "b", "c")
    ]
    said = [holder.communicate(timeout=60)[0] for holder in holders]
    assert [holder.returncode for holder in holders] == [0] * 3
    by_holder = {name: json.loads(text) for name, text in zip("abc", said, strict=True)}
    assert all(by_holder.values()), "everybody had a turn"
    terms = sorted(
        (known, until, name) for name, them in by_holder.items() for known, until in them
    )
    for (_, until, holder), (known, _, other) in pairwise(terms):
        assert holder == other or known >= until, (holder, until, other, known)


def test_racing_threads_take_a_lease_that_ran_out_once(database, clock):
    leases = LeaseRepository(database, clock)
    names = [f"thread-{number}" for number in range(8)]
    with ThreadPoolExecutor(len(names)) as threads:
        for _ in range(25):
            start = threading.Barrier(len(names))

            def race(name: str, start: threading.Barrier = start) -> bool:
                start.wait(10)
                return leases.acquire("leader", name, ttl_s=5)

            won = list(threads.map(race, names))
            assert sum(won) == 1
            clock.advance(5.1)


def test_revision_counts_every_change_of_many_threads(database, clock):
    keys, state = KeyRepository(database, clock), StateReader(database, clock)
    project_id = ensure_project(database, clock)
    before = state.read().revision

    def write(number: int) -> None:
        for _ in range(10):
            keys.create(project_id=project_id, name=f"k{number}")

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(write, range(8)))
    assert state.read().revision == before + 80
    assert len(keys.list()) == 80


def test_project_that_many_threads_ask_for_is_made_once(database, clock):
    with ThreadPoolExecutor(8) as threads:
        ids = set(threads.map(lambda _: ensure_project(database, clock, "same"), range(16)))
    assert len(ids) == 1


def test_reader_sees_one_state_while_others_write(database, clock):
    aliases = AliasRepository(database, clock)
    aliases.point("first", "m")
    with database.read() as session:
        before = session.scalar(select(RevisionRow.value))
        writer = threading.Thread(target=aliases.point, args=("second", "m"))
        writer.start()
        writer.join(10)
        names = set(session.scalars(select(AliasRow.name)))
        assert (session.scalar(select(RevisionRow.value)), names) == (before, {"first"})
    assert len(aliases.list()) == 2


def test_writer_sees_what_the_writer_before_it_did_while_it_waited(database, clock):
    """Read, decide, write: two connections must not interleave, or budgets are overspent."""
    AliasRepository(database, clock).point("turns", "m")

    def take_turn() -> None:
        with database.write(bump_revision=False) as session:
            row = session.scalars(select(AliasRow)).one()
            seen = row.created_at
            time.sleep(0.005)
            row.created_at = seen - 1

    with ThreadPoolExecutor(8) as threads:
        for turn in [threads.submit(take_turn) for _ in range(24)]:
            turn.result()
    with database.read() as session:
        assert session.scalars(select(AliasRow.created_at)).one() == clock.now() - 24


@pytest.mark.parametrize("num_writers", [16])
def test_more_writers_than_connections_queue(store_url, num_writers):
    database = Database(store_url)
    leases = LeaseRepository(database, SystemClock())
    with ThreadPoolExecutor(num_writers) as threads:
        taken = threads.map(lambda n: leases.acquire(f"l{n}", "me", ttl_s=5), range(200))
        assert all(taken)
    database.close()


def test_new_file_that_another_has_open_is_waited_for(tmp_path):
    file = tmp_path / "new.db"
    # As a process that opens it at the same moment does: SQLite waits for readers, not for this.
    other = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
    other.execute("CREATE TABLE t (x)")
    other.execute("BEGIN IMMEDIATE")
    end = threading.Timer(0.3, other.rollback)
    end.start()
    database = Database(f"sqlite:///{file}")
    with database.read() as session:
        assert session.connection().exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
    database.close()
    end.join()
    other.close()
