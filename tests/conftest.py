"""Fixtures that every kind of test shares."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from maas.catalog.catalog import load_catalog
from maas.engines.prepare import prepare_model
from maas.store.database import Database

REPOSITORY = Path(__file__).parents[1]


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


@pytest.fixture(scope="session")
def smollm2_dir() -> Path:
    """SmolLM2-135M-Instruct, prepared once and kept in the user's cache folder."""
    card = load_catalog(REPOSITORY / "models").get_card("smollm2-135m-instruct")
    version = hashlib.sha256("".join(card.source).encode()).hexdigest()[:12]
    cache = Path.home() / ".cache" / "maas-tests" / version
    return prepare_model(card, weights_dir=cache, progress=lambda *_, **__: None).model_dir
