"""The supervisor: starts again what ends, stops what should stop, leaves nothing."""

import asyncio
import os
import signal
import sys
import textwrap

import psutil
import pytest

from maas.serving.supervisor import ProcessSpec, SupervisedProcess, Supervisor


def _module(tmp_path, monkeypatch, name: str, body: str) -> list[str]:
    (tmp_path / f"{name}.py").write_text(textwrap.dedent(body))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.getcwd()}")
    return [name]


SLEEPER = """
    import sys, time
    from maas.core.lifeline import end_with_parent
    end_with_parent()
    print("up", flush=True)
    time.sleep(600)
"""


async def _until(check, timeout_s: float = 10.0):
    async with asyncio.timeout(timeout_s):
        while True:
            if found := check():
                return found
            await asyncio.sleep(0.02)


async def test_killed_process_is_started_again(tmp_path, monkeypatch):
    arguments = _module(tmp_path, monkeypatch, "sleeper", SLEEPER)
    supervisor = Supervisor([ProcessSpec("sleeper", arguments)], tmp_path)
    supervisor.start()
    (process,) = supervisor.processes
    first = await _until(lambda: process.pid)
    os.kill(first, signal.SIGKILL)
    second = await _until(lambda: process.pid if process.pid != first else None)
    assert process.num_restarts == 1
    await supervisor.stop()
    assert not psutil.pid_exists(second)


async def test_what_ignores_sigterm_is_killed(tmp_path, monkeypatch):
    body = SLEEPER.replace("import sys, time", "import signal, time").replace(
        "end_with_parent()\n", "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n", 1
    )
    arguments = _module(tmp_path, monkeypatch, "stubborn", body.replace("end_with_parent()", ""))
    process = SupervisedProcess(
        ProcessSpec("stubborn", arguments, stop_timeout_s=0.3), tmp_path / "stubborn.log"
    )
    running = asyncio.create_task(process.run())
    pid = await _until(lambda: process.pid)
    await _until(lambda: (tmp_path / "stubborn.log").read_text().strip() == "up")
    await process.stop()
    await running
    assert not psutil.pid_exists(pid)


async def test_cleaning_up_happens_before_every_start(tmp_path, monkeypatch):
    arguments = _module(tmp_path, monkeypatch, "failing", "raise SystemExit(1)")
    calls = []
    spec = ProcessSpec("failing", arguments, before_start=lambda: calls.append(1))
    supervisor = Supervisor([spec], tmp_path)
    supervisor.start()
    await _until(lambda: len(calls) >= 2)
    await supervisor.stop()
    assert supervisor.processes[0].num_restarts >= 1


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_children_end_with_a_supervisor_that_dies(tmp_path, monkeypatch, number):
    arguments = _module(tmp_path, monkeypatch, "sleeper", SLEEPER)
    parent = _module(
        tmp_path,
        monkeypatch,
        "parent",
        f"""
        import asyncio
        from pathlib import Path
        from maas.serving.supervisor import ProcessSpec, Supervisor
        async def main():
            spec = ProcessSpec("sleeper", {arguments!r})
            supervisor = Supervisor([spec], Path({str(tmp_path)!r}))
            supervisor.start()
            while not supervisor.processes[0].pid:
                await asyncio.sleep(0.02)
            print(supervisor.processes[0].pid, flush=True)
            await asyncio.sleep(600)
        asyncio.run(main())
        """,
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", *parent, stdout=asyncio.subprocess.PIPE
    )
    child = int(await process.stdout.readline())
    await _until(lambda: (tmp_path / "sleeper.log").read_text().strip() == "up")
    process.send_signal(number)
    await process.wait()
    await _until(lambda: not psutil.pid_exists(child))
