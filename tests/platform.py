"""A whole platform for tests: ``maas up`` in a process of its own, on free ports."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
from httpx import Client
from openai import OpenAI

from maas.bootstrap import Store, open_store
from maas.cli.status import read_status
from maas.core.settings import load_settings

MODEL = "smollm2-135m-instruct"
START_TIMEOUT_S = 240
# A gateway reads the store four times a second: what is true there is true for clients by then.
SEEN_WITHIN_S = 1.0


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@dataclass
class Platform:
    """One platform. ``home`` outlives its processes, so it can be started again."""

    home: Path
    port: int = field(default_factory=free_port)
    metrics_port: int = field(default_factory=free_port)
    settings: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None
    clients: list[OpenAI] = field(default_factory=list)
    store: Store | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def key(self) -> str:
        return (self.home / "admin.key").read_text().strip()

    @property
    def environment(self) -> dict[str, str]:
        own = {
            "MAAS_HOME": str(self.home),
            "MAAS_PORT": str(self.port),
            "MAAS_METRICS_PORT": str(self.metrics_port),
            # What most tests are about; tests/e2e/test_onnx.py is about the default here.
            "MAAS_ENGINE": os.environ.get("TEST_ENGINE", "vllm"),
            **self.settings,
        }
        return {**os.environ, **own}

    def start(self, *, is_waiting: bool = True) -> None:
        with (self.home / "up.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "maas", "up"],
                env=self.environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        if is_waiting:
            self.wait_ready()

    def wait_ready(self, timeout_s: float = START_TIMEOUT_S) -> None:
        self.wait(
            lambda: self.status()["ready"] and self._is_seen(),
            "the platform to be ready",
            timeout_s,
        )

    def _is_seen(self) -> bool:
        """Say whether the gateway has seen what the store says by now."""
        try:
            return httpx.get(f"{self.url}/readyz", timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    def wait(self, is_done, what: str, timeout_s: float = START_TIMEOUT_S) -> Any:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if self.process is not None and self.process.poll() is not None:
                log = (self.home / "up.log").read_text()[-2000:]
                raise AssertionError(f"maas up ended with {self.process.returncode}:\n{log}")
            if result := is_done():
                time.sleep(SEEN_WITHIN_S)
                return result
            time.sleep(0.25)
        raise AssertionError(f"waited {timeout_s} s for {what}; status: {self.status()}")

    def stop(self, number: int = signal.SIGINT) -> float:
        """Stop it as Ctrl-C does; return the seconds that took."""
        if self.process is None:
            return 0.0
        started = time.monotonic()
        self.process.send_signal(number)
        self.process.wait(30)
        self.process = None
        return time.monotonic() - started

    def cli(self, *arguments: str, stdin: str = "") -> dict[str, Any]:
        done = self.run_cli(*arguments, "--json", stdin=stdin)
        assert done.returncode == 0, done.stderr + done.stdout
        return json.loads(done.stdout)

    def run_cli(self, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "maas", *arguments],
            env=self.environment,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def status(self) -> dict[str, Any]:
        """Return what ``maas status --json`` prints, without a process: waits ask often."""
        settings = load_settings(environ=self.environment)
        if self.store is None:
            self.store = open_store(settings)
        return json.loads(json.dumps(read_status(settings, self.store), default=str))

    def replicas(self, model: str = MODEL) -> list[dict[str, Any]]:
        deployments = self.status()["deployments"]
        return [r for d in deployments if d["model_id"] == model for r in d["replicas"]]

    def ready_ids(self, model: str = MODEL) -> set[str]:
        return {r["id"] for r in self.replicas(model) if r["state"] == "ready"}

    def client(self) -> Client:
        return Client(
            base_url=self.url, headers={"Authorization": f"Bearer {self.key}"}, timeout=120
        )

    def openai(self, key: str | None = None) -> OpenAI:
        """Return an SDK client, closed when the platform is let go."""
        client = OpenAI(
            base_url=f"{self.url}/v1", api_key=key or self.key, max_retries=0, timeout=120
        )
        self.clients.append(client)
        return client

    def processes(self) -> list[psutil.Process]:
        """Every process that belongs to this platform, whoever its parent is now."""
        found = []
        for process in psutil.process_iter():
            try:
                environment = process.environ()
                marks = [*process.cmdline(), environment.get("MAASPROC", "")]
                is_ours = environment.get("MAAS_HOME") == str(self.home)
                if is_ours or any(str(self.home) in mark for mark in marks):
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess, OSError):
                continue
        return [p for p in found if p.pid != os.getpid()]

    def find(self, words: str, timeout_s: float = 30) -> psutil.Process:
        """Return the one process whose command line holds these words, once there is one."""
        deadline = time.monotonic() + timeout_s
        while True:
            seen = []
            for process in self.processes():
                try:
                    with_name = [process.name(), *process.cmdline()]
                except psutil.NoSuchProcess:
                    continue
                if any(words in word for word in with_name):
                    return process
                seen.append(with_name[:4])
            assert time.monotonic() < deadline, f"no process {words!r} among {seen}"
            time.sleep(0.25)

    def wait_gone(self, timeout_s: float = 10) -> list[psutil.Process]:
        """Wait until no process is left; return those that are."""
        deadline = time.monotonic() + timeout_s
        while (left := self.processes()) and time.monotonic() < deadline:
            time.sleep(0.1)
        return left


def link_weights(prepared: Path, home: Path) -> None:
    """Put prepared weights into a home without copying their bytes, where that can be done."""
    target = home / "models" / prepared.name
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        shutil.copytree(prepared, target, copy_function=os.link)
    except OSError:
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(prepared, target)


@contextmanager
def running_platform(home: Path, **settings: str) -> Iterator[Platform]:
    """Start a platform, stop it at the end, and leave no process behind whatever happened."""
    platform = Platform(home, settings=settings)
    try:
        platform.start()
        yield platform
    finally:
        for client in platform.clients:
            client.close()
        if platform.store is not None:
            platform.store.database.close()
        try:
            platform.stop()
        finally:
            for process in platform.processes():
                process.kill()
