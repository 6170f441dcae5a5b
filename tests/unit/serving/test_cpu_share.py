"""Replicas of one deployment compute on processors of their own while there are enough."""

import os
import subprocess
import sys

import pytest

from maas.serving.cpu_share import CpuShare


@pytest.fixture
def eight_cpus(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)


def test_replicas_do_not_overlap(tmp_path, eight_cpus):
    shares = [CpuShare(tmp_path, "dep-1", num_shares=3) for _ in range(3)]
    taken = [cpu for share in shares for cpu in share.cpu_ids]
    assert sorted(taken) == list(range(8))


def test_the_only_replica_may_use_all(tmp_path, eight_cpus):
    assert CpuShare(tmp_path, "dep-1", num_shares=1).cpu_ids == ()


def test_replica_beyond_the_parts_uses_all_instead_of_waiting(tmp_path, eight_cpus):
    held = [CpuShare(tmp_path, "dep-1", num_shares=2) for _ in range(2)]
    assert CpuShare(tmp_path, "dep-1", num_shares=2).cpu_ids == ()
    held[1].release()
    held[1].release()
    assert CpuShare(tmp_path, "dep-1", num_shares=2).cpu_ids == (4, 5, 6, 7)


def test_deployments_do_not_take_each_others_parts(tmp_path, eight_cpus):
    first = CpuShare(tmp_path, "dep-1", num_shares=2)
    second = CpuShare(tmp_path, "dep-2", num_shares=2)
    assert first.cpu_ids == second.cpu_ids == (0, 1, 2, 3)


def test_part_of_a_killed_replica_is_free_again(tmp_path, eight_cpus):
    code = (
        "import sys, time; from pathlib import Path; from maas.serving.cpu_share import CpuShare\n"
        "share = CpuShare(Path(sys.argv[1]), 'dep-1', num_shares=2)\n"
        "print('held', flush=True); time.sleep(60)"
    )
    arguments = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        second = CpuShare(tmp_path, "dep-1", num_shares=2)
        assert second.cpu_ids == (4, 5, 6, 7)
        holder.kill()
    assert CpuShare(tmp_path, "dep-1", num_shares=2).cpu_ids == (0, 1, 2, 3)
