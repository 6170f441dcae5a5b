"""What an export's process tells arrives as it was told; its threads sleep where they wait."""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from pydantic import SecretStr

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
from tests.fakes.bundles import SEED


@pytest.fixture
def spec(tmp_path: Path) -> ExportSpec:
    return ExportSpec(
        model_id="m",
        base_model_id="m",
        model_dir=tmp_path,
        name="m-int4",
        work_dir=tmp_path / "work",
        out_path=tmp_path / "m.maas",
        signing_key=SecretStr(SEED),
        max_model_len=16,
        licence={},
        created_at=0.0,
    )


@dataclass
class Run:
    """Runs an export whose process writes what it is given, after a program of its own."""

    spec: ExportSpec
    child: Path
    python: str
    program: str = ""
    on_start: Callable[[object], None] = lambda _: None

    def __call__(self, told: str) -> None:
        source = f"#!{self.python}\n{self.program}print({told!r}, end='')\n"
        self.child.write_text(source, encoding="utf-8")
        self.child.chmod(0o755)
        run_export(self.spec, lambda _: None, self.on_start)


@pytest.fixture
def run(spec: ExportSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    made = Run(spec, tmp_path / "child", sys.executable)
    monkeypatch.setattr(sys, "executable", str(made.child))
    return made


def test_the_key_goes_through_a_pipe_and_is_in_no_file_argument_or_variable(
    run: Run, tmp_path: Path
) -> None:
    told = tmp_path / "told.json"
    run.program = (
        "import json, os, select, sys\n"
        "is_told = select.select([sys.stdin], [], [], 5)[0]\n"
        "first = sys.stdin.readline() if is_told else ''\n"
        "seen = [first, str(sys.argv), str(dict(os.environ))]\n"
        f"open({str(told)!r}, 'w').write(json.dumps(seen))\n"
    )
    with pytest.raises(EngineError, match="process ended"):
        run("")
    first, arguments, variables = json.loads(told.read_text())
    assert first == SEED + "\n"
    assert SEED not in arguments + variables
    told.unlink()
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert tmp_path / "work" / "spec.json" in written
    assert [path for path in written if SEED.encode() in path.read_bytes()] == []


def test_a_process_that_does_not_hear_the_key_says_itself_why_it_ended(
    run: Run, tmp_path: Path
) -> None:
    deaf = tmp_path / "deaf"
    run.program = f"import os\nos.close(0)\nopen({str(deaf)!r}, 'w').close()\n"

    def wait(_end: object) -> None:
        deadline = time.monotonic() + 20
        while not deaf.exists() and time.monotonic() < deadline:
            time.sleep(0.01)

    run.on_start = wait
    error = {"code": "disk_full", "message": "no room", "param": None}
    with pytest.raises(DiskFull, match="no room"):
        run(json.dumps({"error": error}) + "\n")


@pytest.mark.slow
def test_the_process_signs_with_the_key_that_it_is_told(spec: ExportSpec) -> None:
    # A combination that is refused when the key is read, and before weights are.
    wanted = {"precision": "fp16", "target": "cpu"}
    with pytest.raises(CapabilityMissing, match="fp16 on target cpu"):
        run_export(spec.model_copy(update=wanted), lambda _: None)
    none = {**wanted, "signing_key": SecretStr("5e")}
    with pytest.raises(ConfigError, match="not a signing key"):
        run_export(spec.model_copy(update=none), lambda _: None)


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
