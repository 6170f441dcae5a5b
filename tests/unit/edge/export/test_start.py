"""What an export's process tells arrives as it was told; its threads sleep where they wait."""

import json
import sys
from pathlib import Path

import pytest

from maas.core.errors import (
    AdapterRefused,
    BuildFailed,
    BundleRefused,
    CapabilityMissing,
    ConfigError,
    DiskFull,
    EngineError,
)
from maas.edge.export.spec import ExportSpec
from maas.edge.export.start import environment, run_export


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Run an export whose process writes what it is given."""
    spec = ExportSpec(
        model_id="m",
        base_model_id="m",
        model_dir=tmp_path,
        name="m-int4",
        work_dir=tmp_path / "work",
        out_path=tmp_path / "m.maas",
        signing_key=tmp_path / "key",
        max_model_len=16,
        licence={},
        created_at=0.0,
    )
    python, child = sys.executable, tmp_path / "child"

    def run_with(told: str) -> None:
        child.write_text(f"#!{python}\nprint({told!r}, end='')\n", encoding="utf-8")
        child.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(child))
        run_export(spec, lambda _: None)

    return run_with


@pytest.mark.parametrize(
    "kind",
    [
        AdapterRefused,
        BuildFailed,
        BundleRefused,
        CapabilityMissing,
        ConfigError,
        DiskFull,
        EngineError,
    ],
)
def test_an_error_of_the_process_is_the_same_error_here(run, kind):
    error = {"code": kind.code, "message": "90 M parameters are the least", "param": "shrink"}
    with pytest.raises(kind, match="are the least") as caught:
        run(json.dumps({"error": error}) + "\n")
    assert type(caught.value) is kind
    assert caught.value.context["param"] == "shrink"


def test_a_process_that_is_killed_while_it_writes_is_one_that_ended(run):
    with pytest.raises(EngineError, match="process ended"):
        run('{"result": {"bundle_pa')


def test_threads_sleep_where_they_wait_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.setenv("MAAS_HOME", "here")
    assert environment()["OMP_WAIT_POLICY"] == "PASSIVE"
    assert environment()["MAAS_HOME"] == "here"
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    assert environment()["OMP_WAIT_POLICY"] == "ACTIVE"
