"""Leases are judged by the store's clock, whatever this machine's says."""

import time

import pytest

from maas.store.clock import StoreClock
from maas.store.database import Database

TRUE_TIME = time.time


@pytest.fixture
def wrong_clock(monkeypatch):
    """This machine's clock, an hour ahead."""
    monkeypatch.setattr(time, "time", lambda: TRUE_TIME() + 3600)


def test_time_is_the_database_servers(postgres, wrong_clock):
    with postgres.migrated() as url:
        database = Database(url)
        clock = StoreClock(database)
        with database.read():
            pass
        assert abs(clock.now() - TRUE_TIME()) < 1
        database.close()


def test_time_of_a_store_in_a_file_is_this_machines(tmp_path, wrong_clock):
    database = Database(f"sqlite:///{tmp_path / 'maas.db'}")
    database.migrate()
    assert abs(StoreClock(database).now() - TRUE_TIME() - 3600) < 1
    database.close()
