"""A platform of its own for a benchmark: started as a user starts it, measured from outside."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

MODEL = "smollm2-135m-instruct"
START_TIMEOUT_S = 300


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


class RunningPlatform:
    """``maas up`` in a process of its own; a context manager.

    Args:
        home: Its ``MAAS_HOME``.
        engine: What serves its models.

    Attributes:
        ready_s: Seconds from the start until every model answered.
    """

    def __init__(self, home: Path, engine: str = "vllm") -> None:
        self._home = home
        self._port = _free_port()
        self._environment = {
            **os.environ,
            "MAAS_ENGINE": engine,
            "MAAS_HOME": str(home),
            "MAAS_PORT": str(self._port),
            "MAAS_METRICS_PORT": str(_free_port()),
        }
        self._process: subprocess.Popen[bytes] | None = None
        self._started = 0.0
        self.ready_s = 0.0

    @property
    def url(self) -> str:
        """The gateway's URL."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def key(self) -> str:
        """The admin key."""
        return (self._home / "admin.key").read_text(encoding="utf-8").strip()

    def __enter__(self) -> "RunningPlatform":
        self._started = time.perf_counter()
        with (self._home / "up.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "maas", "up"],
                env=self._environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        while not self._is_ready():
            if self._process.poll() is not None or self._seconds() > START_TIMEOUT_S:
                self.__exit__(None, None, None)
                log_text = (self._home / "up.log").read_text(encoding="utf-8")
                raise RuntimeError(f"the platform did not start:\n{log_text[-2000:]}")
            time.sleep(0.05)
        self.ready_s = self._seconds()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(30)

    def _seconds(self) -> float:
        return time.perf_counter() - self._started

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/readyz", timeout=2) as answer:  # noqa: S310
                return answer.status == 200
        except OSError:
            return False

    def first_token_s(self) -> float:
        """Ask for one streamed token; return the seconds since the platform was started."""
        body = {"model": MODEL, "prompt": "Hello", "max_tokens": 4, "stream": True}
        request = urllib.request.Request(  # noqa: S310
            f"{self.url}/v1/completions",
            data=json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
            answer.readline()
            return self._seconds()

    def status(self) -> dict[str, Any]:
        """Return ``maas status --json``."""
        done = subprocess.run(
            [sys.executable, "-m", "maas", "status", "--json"],
            env=self._environment,
            capture_output=True,
            check=True,
        )
        return json.loads(done.stdout)

    def engine_url(self) -> str:
        """Return the URL of the engine itself."""
        return self.status()["deployments"][0]["replicas"][0]["url"]

    def idle_bytes(self) -> int:
        """Return the memory of all processes but the engine's: proportional set size."""
        if self._process is None:
            return 0
        root = psutil.Process(self._process.pid)
        total = 0
        for process in [root, *root.children(recursive=True)]:
            try:
                if "MAASPROC" not in process.environ():
                    total += process.memory_full_info().pss
            except psutil.NoSuchProcess:
                continue
        return total
