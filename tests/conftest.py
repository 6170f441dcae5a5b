"""Fixtures that every kind of test shares."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from maas.store.database import Database


@dataclass
class MovableClock:
    """A clock that stands still until a test moves it."""

    seconds: float = 1_000_000.0

    def now(self) -> float:
        return self.seconds

    def advance(self, seconds: float) -> None:
        self.seconds += seconds


@pytest.fixture
def clock() -> MovableClock:
    return MovableClock()


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(f"sqlite:///{tmp_path / 'maas.db'}")
    database.migrate()
    yield database
    database.close()
