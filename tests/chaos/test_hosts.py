"""A machine that cannot run the platform: one clear line, a non-zero exit, nothing left."""

import shutil
import socket
import subprocess

import pytest

from tests.platform import MODEL, Platform, link_weights


@pytest.fixture
def stopped(tmp_path, smollm2_dir):
    link_weights(smollm2_dir, tmp_path)
    return Platform(tmp_path)


def _one_line(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, done.stderr
    return lines[0]


@pytest.mark.parametrize("setting", ["MAAS_PORT", "MAAS_METRICS_PORT"])
def test_taken_port_names_the_setting(stopped, setting):
    port = stopped.port if setting == "MAAS_PORT" else stopped.metrics_port
    with socket.create_server(("127.0.0.1", port)):
        line = _one_line(stopped.run_cli("up"))
    assert str(port) in line
    assert setting in line


def test_second_platform_on_the_same_home_is_refused(platform):
    line = _one_line(platform.run_cli("up"))
    assert "already runs" in line


def test_corrupt_weights_are_found_before_anything_starts(stopped):
    folder = stopped.home / "models" / MODEL
    weights = folder / "model.safetensors"
    damaged = weights.read_bytes()[:-1000]
    weights.unlink()  # a hard link: the cache's own copy must stay whole
    weights.write_bytes(damaged)
    line = _one_line(stopped.run_cli("up"))
    assert "model.safetensors" in line
    assert stopped.processes() == []


def test_full_disk_is_said_in_one_line(tmp_path):
    if shutil.which("mount") is None:
        pytest.fail("this test needs mount(8)")
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(small)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        line = _one_line(Platform(small).run_cli("up"))
        assert "free" in line
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_unknown_setting_is_refused(stopped):
    stopped.settings["MAAS_GATEWAY__SPEED"] = "11"
    assert "gateway.speed" in _one_line(stopped.run_cli("status"))
