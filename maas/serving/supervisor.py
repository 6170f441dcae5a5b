"""Keeps the platform's own processes alive: Ray's head, the controller, the gateway.

Each child holds a lifeline (maas.core.lifeline) and its own session, so Ctrl-C reaches the
supervisor alone and a killed supervisor takes everything with it.
"""

import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from maas.core.lifeline import LIFELINE_FLAG
from maas.serving.backoff import backoff_s

log = logging.getLogger(__name__)

FIRST_BACKOFF_S = 0.5
MAX_BACKOFF_S = 30.0
STABLE_AFTER_S = 60.0


@dataclass(frozen=True)
class ProcessSpec:
    """One process to keep alive.

    Attributes:
        name: Also the name of its log file.
        arguments: Arguments of ``python -m``.
        environment: Variables on top of the inherited ones.
        stop_timeout_s: Seconds it may take to stop before it is killed.
        before_start: Called before each start; clears what a killed predecessor left.
    """

    name: str
    arguments: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    stop_timeout_s: float = 4.0
    before_start: Callable[[], object] = lambda: None


class SupervisedProcess:
    """Starts one process and starts it again whenever it ends."""

    def __init__(self, spec: ProcessSpec, log_path: Path) -> None:
        self.spec = spec
        self.num_restarts = 0
        self._log_path = log_path
        self._process: asyncio.subprocess.Process | None = None
        self._is_stopping = False

    @property
    def pid(self) -> int | None:
        """The process id while it runs."""
        running = self._process is not None and self._process.returncode is None
        return self._process.pid if self._process is not None and running else None

    async def run(self) -> None:
        """Keep the process alive until ``stop`` is called."""
        num_failures = 0
        while not self._is_stopping:
            started = time.monotonic()
            try:
                await asyncio.to_thread(self.spec.before_start)
                self._process = await self._start()
                returncode = await self._process.wait()
            except OSError as error:
                # No memory to fork, no disk for the log: as good as a process that ended.
                returncode = error.errno
            if self._is_stopping:
                return
            is_stable = time.monotonic() - started > STABLE_AFTER_S
            num_failures = 1 if is_stable else num_failures + 1
            self.num_restarts += 1
            pause = backoff_s(num_failures, first_s=FIRST_BACKOFF_S, max_s=MAX_BACKOFF_S)
            log.warning("%s ended with %s; again in %.1f s", self.spec.name, returncode, pause)
            await asyncio.sleep(pause)

    async def stop(self) -> None:
        """Ask the process to stop; kill it if it does not."""
        self._is_stopping = True
        process = self._process
        if process is None or process.returncode is not None:
            return
        process.terminate()
        try:
            await asyncio.wait_for(process.wait(), self.spec.stop_timeout_s)
        except TimeoutError:
            log.warning("%s did not stop in time: killing it", self.spec.name)
            os.killpg(process.pid, signal.SIGKILL)
            await process.wait()

    async def _start(self) -> asyncio.subprocess.Process:
        self._log_path.parent.mkdir(parents=True, exist_ok=True)
        with self._log_path.open("ab") as sink:
            return await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                *self.spec.arguments,
                LIFELINE_FLAG,
                stdin=asyncio.subprocess.PIPE,
                stdout=sink,
                stderr=sink,
                env={**os.environ, **self.spec.environment},
                start_new_session=True,
            )


class Supervisor:
    """Keeps several processes alive; stops them in the reverse order of their starting."""

    def __init__(self, specs: Sequence[ProcessSpec], logs_dir: Path) -> None:
        self.processes = [SupervisedProcess(s, logs_dir / f"{s.name}.log") for s in specs]
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Start everything; returns at once."""
        self._tasks = [asyncio.create_task(process.run()) for process in self.processes]

    async def stop(self) -> None:
        """Stop everything, last started first."""
        for process in reversed(self.processes):
            await process.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
