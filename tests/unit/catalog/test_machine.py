"""What is read of this machine."""

from pathlib import Path

import pytest

from maas.catalog import machine as probed
from maas.catalog.machine import probe_machine


def test_machine_is_probed_for_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    machine = probe_machine(tmp_path / "not" / "yet")
    assert machine.num_cores >= 1
    assert 0 < machine.memory_available_bytes <= machine.memory_total_bytes
    assert machine.disk_free_bytes > 0


def test_gpus_are_read_from_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho 'NVIDIA H100 80GB HBM3, 81559'\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    (gpu,) = probe_machine(tmp_path).gpus
    assert gpu.name == "NVIDIA H100 80GB HBM3"
    assert gpu.memory_bytes == 81559 * 2**20


def test_broken_nvidia_smi_means_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\nexit 9\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert probe_machine(tmp_path).gpus == ()


def _limit(folder: Path, limit: str) -> None:
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text("600000\n")
    (folder / "memory.stat").write_text("anon 1\ninactive_file 100000\n")


def test_container_s_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _limit(tmp_path, "1000000")
    monkeypatch.setattr(probed, "_CGROUPS", ((tmp_path, probed._CGROUP_V2),))
    machine = probe_machine(tmp_path)
    assert machine.memory_total_bytes == 1_000_000
    assert machine.memory_available_bytes == 500_000


def test_container_without_a_limit_has_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _limit(tmp_path, "max")
    monkeypatch.setattr(probed, "_CGROUPS", ((tmp_path, probed._CGROUP_V2),))
    assert probe_machine(tmp_path).memory_total_bytes > 2**30
