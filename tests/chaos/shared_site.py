"""One store and real processes on it: gateways as shipped, controllers of a journal."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from maas.bootstrap.reconcile import LEASE_NAME
from maas.bootstrap.store import Store, open_store, save_settings
from maas.core.settings import Settings
from maas.store.state import ensure_project
from maas.store.tables import LeaseRow
from tests.chaos.journal_controller import read_journal, running_in
from tests.conftest import REPOSITORY
from tests.fakes.engine import FakeEngine
from tests.platform import free_port

LEASE_S = 2.0


@dataclass
class Site:
    """One store, and the processes on it; each machine has a home of its own."""

    folder: Path
    url: str
    key: str = ""
    gateways: list[str] = field(default_factory=list)
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    controllers: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.journal = self.folder / "journal"
        self.journal.touch()
        self.store: Store = open_store(self._settings("operator"))
        self.project_id = ensure_project(self.store.database, self.store.clock)
        _, self.key = self.store.keys.create(project_id=self.project_id, name="load")

    def _settings(self, machine: str) -> Settings:
        return Settings.model_validate(
            {
                "home": self.folder / machine,
                "database_url": self.url,
                "serving": {"lease_ttl_s": LEASE_S, "reconcile_interval_s": 0.1},
            }
        )

    def _start(self, name: str, command: list[str], **environment: str) -> subprocess.Popen[bytes]:
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", *command],
                cwd=REPOSITORY,
                env={**os.environ, **environment},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.processes.append(process)
        return process

    def start_gateway(self) -> None:
        """As in docs/operators.md: on another machine, with the store's URL."""
        self.gateways.append(f"http://127.0.0.1:{free_port()}")
        self.restart_gateway(len(self.gateways) - 1)

    def restart_gateway(self, number: int) -> None:
        """Start a gateway on the port and the home it has."""
        machine = f"gateway-{number}"
        port = self.gateways[number].rpartition(":")[2]
        environment = {
            "MAAS_HOME": str(self.folder / machine),
            "MAAS_DATABASE_URL": self.url,
        }
        ports = ["--port", port, "--metrics-port", str(free_port())]
        self._start(machine, ["maas", "gateway", *ports], **environment)
        url = f"{self.gateways[number]}/healthz"
        self.wait(lambda: is_up(url), "the gateway")

    def start_controller(self) -> None:
        name = f"controller-{len(self.processes)}"
        settings_file = save_settings(self._settings(name))
        command = ["tests.chaos.journal_controller", str(settings_file), str(self.journal)]
        self.controllers.append(self._start(name, command))

    def leader(self) -> subprocess.Popen[bytes]:
        """Return the controller that acted last."""
        acts = read_journal(self.journal)
        assert acts, "no controller has acted yet"
        return next(item for item in self.controllers if item.pid == acts[-1]["pid"])

    def holder(self) -> str | None:
        with self.store.database.read() as session:
            row = session.get(LeaseRow, LEASE_NAME)
            return row and row.holder

    def deploy(self, count: int) -> list[str]:
        """Write down deployments for the journal."""
        return [
            self.store.deployments.create(
                project_id=self.project_id, model_id="m", engine="vllm", options={}
            ).id
            for _ in range(count)
        ]

    def serve(self, engine: FakeEngine) -> None:
        """Deploy the model ``tiny``, its lease kept by whoever leads."""
        self.store.deployments.create(
            project_id=self.project_id,
            model_id="tiny",
            engine="external",
            options={"url": engine.url, "max_model_len": engine.max_model_len},
        )
        self.wait_answers(self.key, 200)

    def chat(self, url: str, key: str | None = None) -> int:
        body = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}
        headers = {"Authorization": f"Bearer {key or self.key}"}
        try:
            path = f"{url}/v1/chat/completions"
            return httpx.post(path, json=body, headers=headers, timeout=10).status_code
        except httpx.TransportError:
            return 0

    def wait_answers(self, key: str, status: int) -> float:
        """Wait until every gateway answers a key with a status; return the seconds that took."""
        return sum(
            self.wait(lambda url=url: self.chat(url, key) == status, f"{status} of {url}")
            for url in self.gateways
        )

    def running(self) -> set[str]:
        return set(running_in(read_journal(self.journal)))

    def wait(self, is_done: Callable[[], object], what: str, timeout_s: float = 20) -> float:
        """Wait for something; return the seconds that took."""
        started = time.monotonic()
        while not is_done():
            took = time.monotonic() - started
            assert took < timeout_s, f"waited {took:.1f} s for {what}; logs in {self.folder}"
            time.sleep(0.02)
        return time.monotonic() - started

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()
        self.store.database.close()


def is_up(url: str) -> bool:
    try:
        return httpx.get(url).status_code == 200
    except httpx.TransportError:
        return False


@contextmanager
def running_site(folder: Path, url: str) -> Iterator[Site]:
    """Make a site; at the end none of its processes is left."""
    site = Site(folder, url)
    try:
        yield site
    finally:
        site.close()
