import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from maas.core.errors import EngineStartFailed
from maas.engines import process
from maas.engines.orphans import find_orphans, kill_orphans
from maas.engines.process import last_words

from .conftest import TREE_ENGINE, free_port, gone_within, tree_of

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="needs prctl and /proc")
pytestmark = linux_only


async def test_started_engine_becomes_ready_and_stops_without_a_trace(start, client, tmp_path):
    engine = await start()
    await engine.wait_ready(client, timeout_s=10)
    assert engine.is_alive
    assert len(tree_of(engine.pid)) == 4
    assert engine.memory_bytes() > 2**20
    assert 0 < engine.cpu_seconds() < 10
    await engine.stop(grace_s=5)
    assert not engine.is_alive
    assert find_orphans(tmp_path) == []
    assert engine.memory_bytes() == 0
    assert engine.cpu_seconds() == 0


async def test_engine_that_ignores_sigterm_is_killed_after_the_grace(start, client, tmp_path):
    engine = await start("stubborn")
    await engine.wait_ready(client, timeout_s=10)
    started = time.monotonic()
    await engine.stop(grace_s=0.5)
    assert 0.5 <= time.monotonic() - started < 5
    assert find_orphans(tmp_path) == []


async def test_engine_that_exits_early_fails_at_once_and_says_why(start, client):
    engine = await start("crash")
    started = time.monotonic()
    with pytest.raises(EngineStartFailed, match="no such architecture: Foo") as caught:
        await engine.wait_ready(client, timeout_s=60)
    assert time.monotonic() - started < 10
    assert "initialization failed" not in caught.value.message
    assert caught.value.context["exit_code"] == 3


async def test_engine_that_never_answers_fails_after_the_timeout(start, client):
    engine = await start("deaf")
    with pytest.raises(EngineStartFailed, match="was not ready after 1 s"):
        await engine.wait_ready(client, timeout_s=1)


async def test_command_that_does_not_exist_is_named(start, client):
    engine = await start()
    await engine.stop(grace_s=0)
    engine._adapter.command = lambda spec: ["no-such-engine-command"]
    await engine.start()
    with pytest.raises(EngineStartFailed, match="cannot start no-such-engine-command"):
        await engine.wait_ready(client, timeout_s=10)


@pytest.mark.parametrize("victim", [0, 1, 2, 3], ids=["launcher", "server", "core", "worker"])
async def test_killing_any_process_of_the_tree_leaves_nothing_in_the_end(
    start, client, tmp_path, victim
):
    engine = await start()
    await engine.wait_ready(client, timeout_s=10)
    tree_of(engine.pid)[victim].send_signal(signal.SIGKILL)
    if victim > 1:  # the server lives on without them, as far as this stand-in knows
        assert engine.is_alive
        await engine.stop(grace_s=1)
    assert await gone_within(tmp_path, 5)
    assert not engine.is_alive


async def test_exit_is_reported_once_but_not_when_asked_for(start, client):
    codes: list[int] = []
    engine = await start(on_exit=codes.append)
    await engine.wait_ready(client, timeout_s=10)
    tree_of(engine.pid)[1].send_signal(signal.SIGKILL)
    await asyncio.wait_for(engine._watch, timeout=5)
    assert codes == [128 + signal.SIGKILL]

    wanted: list[int] = []
    engine = await start(replica_id="r2", on_exit=wanted.append)
    await engine.stop(grace_s=1)
    assert wanted == []


PARENT = """
import asyncio, sys
from pathlib import Path
from maas.engines.process import EngineProcess
from tests.unit.engines.conftest import TreeEngine, spec_on

async def main():
    home = Path(sys.argv[1])
    engine = EngineProcess(TreeEngine(), spec_on(int(sys.argv[2])), home=home,
                           replica_id="r1", log_path=home / "engine.log")
    await engine.start()
    await asyncio.sleep(3600)

asyncio.run(main())
"""


def _start_parent(home: Path) -> subprocess.Popen:
    command = [sys.executable, "-c", PARENT, str(home), str(free_port())]
    root = TREE_ENGINE.parents[3]
    return subprocess.Popen(command, cwd=root, env=os.environ | {"PYTHONPATH": str(root)})


async def _orphaned_tree(tmp_path: Path) -> tuple[subprocess.Popen, list[psutil.Process]]:
    """Start an engine from a process of its own; return that process and the engine's tree."""
    parent = _start_parent(tmp_path)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        found = find_orphans(tmp_path)
        if len(found) == 4:
            return parent, found
        await asyncio.sleep(0.05)
    parent.kill()
    raise AssertionError("the engine did not come up")


async def test_engine_ends_when_its_parent_is_killed(tmp_path):
    parent, _ = await _orphaned_tree(tmp_path)
    parent.kill()
    parent.wait()
    assert await gone_within(tmp_path, 5)


async def test_sweep_ends_what_outlives_parent_and_launcher(tmp_path):
    parent, tree = await _orphaned_tree(tmp_path)
    launcher = next(p for p in tree if "launcher.py" in " ".join(p.cmdline()))
    parent.kill()
    launcher.kill()
    parent.wait()
    assert not kill_orphans(tmp_path / "another")
    kill_orphans(tmp_path)
    assert find_orphans(tmp_path) == []


async def test_sweep_of_one_replica_spares_the_others(start, client, tmp_path):
    first, second = await start(replica_id="r1"), await start(replica_id="r10")
    await first.wait_ready(client, timeout_s=10)
    await second.wait_ready(client, timeout_s=10)
    assert len(kill_orphans(tmp_path, "r1")) >= 1
    assert find_orphans(tmp_path, "r1") == []
    assert second.is_alive
    assert len(find_orphans(tmp_path, "r10")) == 4


def _log_texts(log: Path) -> tuple[str, str]:
    return log.read_text(), Path(f"{log}.1").read_text()


async def test_log_starts_anew_at_its_size(start, client, tmp_path, monkeypatch):
    monkeypatch.setattr(process, "MAX_LOG_BYTES", 10_000)
    engine = await start("chatty")
    await engine.wait_ready(client, timeout_s=10)
    await engine.stop(grace_s=1)
    newest, older = _log_texts(tmp_path / "logs" / "r1.log")
    assert len(newest) <= 10_000 + 65_536
    assert older
    assert "line 011999" in newest + older


async def test_engine_inherits_no_settings_and_no_thread_count(start, client, monkeypatch):
    monkeypatch.setenv("MAAS_SECRET", "x")
    monkeypatch.setenv("RAY_ADDRESS", "x")
    engine = await start()
    await engine.wait_ready(client, timeout_s=10)
    environ = tree_of(engine.pid)[1].environ()
    assert not [name for name in environ if name.startswith(("MAAS_", "RAY_"))]
    assert environ["MAASPROC"].endswith(":r1")


def test_last_words_of_a_missing_log_are_empty(tmp_path):
    assert last_words(tmp_path / "none.log") == ""


def test_last_words_without_an_error_are_the_last_lines(tmp_path):
    (tmp_path / "log").write_text("\n".join(f"step {n}" for n in range(9)))
    assert last_words(tmp_path / "log", num_lines=2) == "step 7\nstep 8"
