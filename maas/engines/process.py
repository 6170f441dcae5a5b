"""Starts, watches and stops one engine's process tree."""

import asyncio
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

import aiohttp
import psutil

from maas.core.errors import EngineStartFailed
from maas.engines.contract import EngineAdapter, EngineSpec
from maas.engines.orphans import TAG_VARIABLE, kill_orphans, tag_of

LAUNCHER = Path(__file__).with_name("launcher.py")
MAX_LOG_BYTES = 32 * 2**20
_READY_INTERVAL_S = 0.1
_TAIL_BYTES = 64 * 1024
_MAX_LINE = 300
# Ours (they may hold secrets) and Ray's (it sets thread counts for its own workers) stay here.
_NOT_INHERITED = re.compile(r"(MAAS_|RAY_|SERVE_).*|OMP_NUM_THREADS|MKL_NUM_THREADS")
_ERROR_LINE = re.compile(r"\b\w*(Error|Exception): |Value error, |cannot start|out of memory")
# Not a cause: what is only logged, and what vLLM's front end says about an error that its engine
# process has already explained.
_ECHO = re.compile(r" (INFO|WARNING) |Engine core initialization failed|raise |Traceback")


def last_words(log_path: Path, *, num_lines: int = 4) -> str:
    """Return the lines of a log that most likely say why its writer died."""
    try:
        with log_path.open("rb") as file:
            file.seek(max(0, log_path.stat().st_size - _TAIL_BYTES))
            text = file.read().decode("utf-8", "replace")
    except FileNotFoundError:
        return ""
    lines = [line.strip()[:_MAX_LINE] for line in text.splitlines() if line.strip()]
    causes = [line for line in lines if _ERROR_LINE.search(line) and not _ECHO.search(line)]
    return "\n".join(list(dict.fromkeys(causes or lines))[-num_lines:])


class EngineProcess:
    """One engine as a child of this process.

    Args:
        adapter: How this kind of engine is started and read.
        spec: What to start.
        home: The platform's ``MAAS_HOME``; with ``replica_id`` it tags every process.
        replica_id: Id of the replica this engine is.
        log_path: Where its output goes; rotated at ``MAX_LOG_BYTES``.
        on_exit: Called once with the exit code when the engine ends by itself.
    """

    def __init__(
        self,
        adapter: EngineAdapter,
        spec: EngineSpec,
        *,
        home: Path,
        replica_id: str,
        log_path: Path,
        on_exit: Callable[[int], None] | None = None,
    ) -> None:
        self._adapter = adapter
        self._spec = spec
        self._home = home
        self._replica_id = replica_id
        self._log_path = log_path
        self._on_exit = on_exit
        self._launcher: asyncio.subprocess.Process | None = None
        self._watch: asyncio.Task[None] | None = None
        self._is_stopping = False

    @property
    def pid(self) -> int | None:
        """Process id of the launcher, the root of the engine's tree; none before the start."""
        return self._launcher.pid if self._launcher else None

    @property
    def is_alive(self) -> bool:
        """Whether the engine's first process still runs."""
        return self._launcher is not None and self._launcher.returncode is None

    async def start(self) -> None:
        """Start the engine; it is not ready yet.

        Raises:
            ConfigError: The spec asks for what this engine cannot do.
        """
        command = self._adapter.command(self._spec)
        environ = {k: v for k, v in os.environ.items() if not _NOT_INHERITED.fullmatch(k)}
        environ |= self._adapter.environment(self._spec)
        # A process that renames itself (vLLM's core) would write the name over the tag.
        environ["SPT_NOENV"] = "1"
        environ[TAG_VARIABLE] = tag_of(self._home, self._replica_id)
        cpus = ",".join(map(str, self._spec.cpu_ids)) or "all"
        self._log_path.parent.mkdir(parents=True, exist_ok=True)
        self._launcher = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", str(LAUNCHER)),
            *(str(self._log_path), str(MAX_LOG_BYTES), cpus, *command),
            stdin=asyncio.subprocess.PIPE,
            env=environ,
            start_new_session=True,
        )
        self._watch = asyncio.create_task(self._until_exit(self._launcher))

    async def _until_exit(self, launcher: asyncio.subprocess.Process) -> None:
        code = await launcher.wait()
        # The launcher leaves nothing behind, unless it was killed itself.
        await asyncio.to_thread(kill_orphans, self._home, self._replica_id)
        if self._on_exit and not self._is_stopping:
            self._on_exit(code)

    async def wait_ready(self, client: aiohttp.ClientSession, *, timeout_s: float) -> None:
        """Wait until the engine answers requests.

        Raises:
            EngineStartFailed: It ended, or did not answer in time; the message holds the last
                lines of its log that tell why.
        """
        started = time.monotonic()
        while not await self._adapter.is_ready(client, self._spec.url):
            seconds = time.monotonic() - started
            if not self.is_alive:
                raise self._failure(f"ended after {seconds:.0f} s without becoming ready")
            if seconds > timeout_s:
                raise self._failure(f"was not ready after {timeout_s:.0f} s")
            await asyncio.sleep(_READY_INTERVAL_S)

    def _failure(self, what: str) -> EngineStartFailed:
        words = last_words(self._log_path)
        return EngineStartFailed(
            f"engine {self._adapter.name} of {self._spec.served_model_name} {what}; "
            f"its log {self._log_path} says:\n{words}",
            log=str(self._log_path),
            exit_code=self._launcher.returncode if self._launcher else None,
        )

    async def stop(self, *, grace_s: float) -> None:
        """End the engine: SIGTERM, after ``grace_s`` SIGKILL; returns when nothing is left."""
        self._is_stopping = True
        if self._launcher is None or self._watch is None:
            return
        if self.is_alive and grace_s > 0:
            self._launcher.terminate()
            await asyncio.wait({self._watch}, timeout=grace_s)
        if self._launcher.stdin:
            self._launcher.stdin.close()
        await asyncio.shield(self._watch)

    def memory_bytes(self) -> int:
        """Return the resident memory of the whole tree in bytes, shared pages counted once."""
        return sum(_private_bytes(process) for process in self._tree())

    def cpu_seconds(self) -> float:
        """Return the processor time that the tree as it is now has used, in seconds."""
        return sum(_cpu_seconds(process) for process in self._tree())

    def _tree(self) -> list[psutil.Process]:
        if self._launcher is None or not self.is_alive:
            return []
        try:
            root = psutil.Process(self._launcher.pid)
            return [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []


def _cpu_seconds(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
        return times.user + times.system
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return 0.0


def _private_bytes(process: psutil.Process) -> int:
    try:
        memory = process.memory_info()
        return memory.rss - getattr(memory, "shared", 0)
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return 0
