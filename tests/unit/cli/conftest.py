"""Commands as a script runs them, each test with a store of its own, of each kind."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from maas.bootstrap import store as wiring
from maas.cli.main import app
from maas.core.errors import MaasError
from maas.store.database import Database


@pytest.fixture
def maas(store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Run a command and return the object it prints."""
    monkeypatch.setenv("MAAS_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MAAS_DATABASE_URL", store_url)
    monkeypatch.chdir(tmp_path)
    runner = CliRunner()
    opened: list[Database] = []

    def open_database(*arguments, **options) -> Database:
        opened.append(Database(*arguments, **options))
        return opened[-1]

    # A command leaves its connections to the end of its process.
    monkeypatch.setattr(wiring, "Database", open_database)

    def run(*arguments: str, code: int = 0):
        done = runner.invoke(app, [*arguments, "--json"])
        if isinstance(done.exception, MaasError):
            raise done.exception
        assert done.exit_code == code, done.output
        return json.loads(done.stdout)

    yield run
    for database in opened:
        database.close()
