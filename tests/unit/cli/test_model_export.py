"""``maas model export-adapter``: the two files, unless the base's licence keeps them here."""

from dataclasses import replace

import pytest
from typer.testing import CliRunner

from maas.bootstrap.store import open_store
from maas.cli.main import app
from maas.core.settings import load_settings
from maas.finetune.adapter_files import ADAPTER_NAMES
from maas.store.blobs import open_blobs
from maas.store.state import ensure_project
from tests.fakes.adapters import tuned_model


@pytest.fixture
def model(tmp_path, monkeypatch):
    """A tuned model in an empty home."""
    monkeypatch.setenv("MAAS_HOME", str(tmp_path / "home"))
    store = open_store(load_settings())
    made = tuned_model(store, ensure_project(store.database, store.clock))
    for name in ADAPTER_NAMES:
        (tmp_path / name).write_text(f"bytes of {name}")
    open_blobs(load_settings()).put_folder(f"adapters/{made.adapter_id}", tmp_path, ADAPTER_NAMES)
    strict = replace(made, id=f"{made.id}-strict", licence={"name": "L", "allows_export": False})
    store.tuned_models.add(strict)
    yield made
    store.database.close()


def export(*arguments):
    return CliRunner().invoke(app, ["model", "export-adapter", *map(str, arguments)])


def test_files_are_written_into_a_new_folder(model, tmp_path):
    assert export(model.id, tmp_path / "out").exit_code == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == set(ADAPTER_NAMES)
    again = export(model.id, tmp_path / "out")
    assert (again.exit_code, "there already" in str(again.exception)) == (1, True)


def test_what_may_not_leave_stays(model, tmp_path):
    refused = export(f"{model.id}-strict", tmp_path / "out")
    assert (refused.exit_code, "does not allow" in str(refused.exception)) == (1, True)
    assert not (tmp_path / "out").exists()


def test_unknown_name_is_said(model, tmp_path):
    assert "no adapter" in str(export("ft:nobody", tmp_path / "out").exception)
