"""The access log: one line a request, written in batches off the hot path."""

import asyncio
import contextlib
import logging
from collections import deque
from pathlib import Path

import msgspec

log = logging.getLogger(__name__)

_FLUSH_EVERY_S = 0.5
MAX_LOG_BYTES = 64 * 2**20


class AccessRecord(msgspec.Struct, omit_defaults=True):
    """One request. Times in seconds since the epoch and seconds."""

    time: float
    request_id: str
    route: str
    model: str
    status: int
    duration_s: float
    key_id: str = ""
    replica: str = ""
    ttft_s: float | None = None
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    num_completion_tokens: int = 0
    error: str | None = None


class AccessLog:
    """Collects records and writes them as JSON lines; bounded, the oldest go first."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._records: deque[AccessRecord] = deque(maxlen=100_000)
        self._task: asyncio.Task[None] | None = None
        self.add = self._records.append

    async def start(self) -> None:
        """Begin writing."""
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Write what is left and end."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        await asyncio.to_thread(self._flush)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(_FLUSH_EVERY_S)
            if self._records:
                await asyncio.to_thread(self._flush)

    def _flush(self) -> None:
        lines: list[bytes] = []
        # Another flush may run at the same time, when the gateway stops.
        with contextlib.suppress(IndexError):
            while True:
                lines.append(msgspec.json.encode(self._records.popleft()))
        if not lines:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            if self._path.exists() and self._path.stat().st_size > MAX_LOG_BYTES:
                self._path.replace(self._path.with_suffix(".log.1"))
            with self._path.open("ab") as sink:
                sink.write(b"\n".join(lines) + b"\n")
        except OSError as error:
            # A full disk costs log lines, never an answer.
            log.warning("the access log lost %d lines: %s", len(lines), error)
