"""Commands as a script runs them, each test with a store of its own."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from maas.cli.main import app
from maas.core.errors import MaasError


@pytest.fixture
def maas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Run a command and return the object it prints."""
    monkeypatch.setenv("MAAS_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    runner = CliRunner()

    def run(*arguments: str, code: int = 0):
        done = runner.invoke(app, [*arguments, "--json"])
        if isinstance(done.exception, MaasError):
            raise done.exception
        assert done.exit_code == code, done.output
        return json.loads(done.stdout)

    return run
