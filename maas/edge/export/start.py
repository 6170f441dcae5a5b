"""Starts an export in a process of its own and passes on what it tells."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from maas.core.errors import (
    AdapterRefused,
    BuildFailed,
    BundleRefused,
    CapabilityMissing,
    ConfigError,
    DiskFull,
    EngineError,
    MaasError,
)
from maas.core.lifeline import LIFELINE_FLAG
from maas.edge.export.spec import ExportResult, ExportSpec, Progress

_ERRORS: dict[str, type[MaasError]] = {
    kind.code: kind
    for kind in (
        *(AdapterRefused, BuildFailed, BundleRefused, CapabilityMissing),
        *(ConfigError, DiskFull, EngineError),
    )
}
_LOG = "export.log"


def run_export(
    spec: ExportSpec,
    report: Callable[[Progress], None],
    on_start: Callable[[Callable[[], None]], None] = lambda _: None,
) -> ExportResult:
    """Run an export; its process ends when this one does.

    Args:
        spec: What is wanted.
        report: Told how far it is.
        on_start: Given what ends its process early, with all that it started.

    Raises:
        BundleRefused: It keeps too little of the original.
        CapabilityMissing: It cannot be made, or proved, here.
        AdapterRefused: An adapter does not fit.
        ConfigError: It cannot become as small as is asked for.
        DiskFull: No room.
        BuildFailed: No graph can be made of the model.
        EngineError: Its process was killed, or found no memory; the message is the last line it
            wrote.
    """
    spec.work_dir.mkdir(parents=True, exist_ok=True)
    written = spec.work_dir / "spec.json"
    written.write_text(spec.model_dump_json(indent=1), encoding="utf-8")
    command = [sys.executable, "-P", "-m", "maas.edge.export.child", str(written), LIFELINE_FLAG]
    log = spec.work_dir / _LOG
    with (
        log.open("w", encoding="utf-8") as errors,
        subprocess.Popen(  # noqa: S603 - our own module
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=environment(),
            start_new_session=True,
        ) as child,
    ):
        on_start(partial(_end_group, child.pid))
        _hand_over(child, spec.signing_key.get_secret_value())
        result: ExportResult | None = None
        failure: MaasError | None = None
        for line in child.stdout or ():
            try:
                told = json.loads(line)
            except ValueError:
                # It was killed while it wrote.
                break
            if "progress" in told:
                report(Progress.model_validate(told["progress"]))
            elif "result" in told:
                result = ExportResult.model_validate(told["result"])
            else:
                kind = _ERRORS.get(told["error"]["code"], EngineError)
                failure = kind(told["error"]["message"], param=told["error"]["param"])
        # Killed in the middle, it leaves what it started; not waited for yet, its id is its own.
        _end_group(child.pid)
    if failure is not None:
        raise failure
    if result is None:
        raise EngineError(f"the export's process ended: {_last_line(log)}")
    return result


def _hand_over(child: "subprocess.Popen[str]", signing_key: str) -> None:
    """Write the private key to the process: others see no pipe, but arguments and perhaps files."""
    # One that ended already says so by itself. Unbuffered: closing has nothing left to write.
    with contextlib.suppress(BrokenPipeError):
        if child.stdin is not None:
            os.write(child.stdin.fileno(), f"{signing_key}\n".encode())


def _end_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def environment() -> dict[str, str]:
    """Return the process's environment: torch's threads sleep where they wait.

    Beside other work one that waits for its neighbour would burn the very time that one needs: a
    small product took ten times as long.
    """
    return {"OMP_WAIT_POLICY": "PASSIVE", **os.environ}


def _last_line(log: Path) -> str:
    if not log.exists():
        return "it said nothing"
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"
