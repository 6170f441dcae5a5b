"""What is measured, each a process of its own: the mock engine, our gateway and its peers."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

import psutil

from benchmarks.gateway.mock_engine import MODEL
from maas.bootstrap.store import Store, open_store, save_settings
from maas.core.settings import Settings
from maas.ledger.prices import Rates
from maas.ledger.tariff import Tariff
from maas.store.limits import LimitKey
from maas.store.records import LimitScope, Replica, ReplicaState
from maas.store.state import ensure_project

START_TIMEOUT_S = 120
LITELLM = "litellm"
ROUTER = "vllm-router"
PINNED = {ROUTER: ("vllm-router==0.1.17",), LITELLM: ("litellm[proxy]==1.106.0",)}
_LITELLM_KEY = "sk-bench"


@dataclass(frozen=True)
class Server:
    """A server under measurement.

    Attributes:
        name: Its row in the table.
        key: Sent as a bearer token where it checks keys.
    """

    name: str
    port: int
    process: psutil.Process
    key: str | None = None

    def cpu_s(self) -> float:
        """Return the processor seconds of the process and its children so far."""
        total = 0.0
        for process in [self.process, *self.process.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                total += times.user + times.system
        return total


def free_port() -> int:
    """Return a loopback port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def _answers(port: int, path: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=2) as answer:
            return answer.status == 200
    except (OSError, urllib.error.URLError):
        return False


@contextmanager
def _running(
    name: str,
    command: Sequence[str],
    *,
    port: int,
    ready_path: str,
    log: Path,
    environment: Mapping[str, str] | None = None,
) -> Iterator[psutil.Process]:
    """Run a server until the block is left; waits until it answers."""
    with log.open("ab") as sink:
        process = subprocess.Popen(
            list(command),
            stdout=sink,
            stderr=sink,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not _answers(port, ready_path):
            if process.poll() is not None or time.monotonic() > deadline:
                tail = log.read_text(encoding="utf-8", errors="replace")[-2000:]
                raise RuntimeError(f"{name} did not start:\n{tail}")
            time.sleep(0.1)
        yield psutil.Process(process.pid)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(5)


@contextmanager
def mock_engine(folder: Path) -> Iterator[Server]:
    """Run the engine that everything stands in front of."""
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.gateway.mock_engine", str(port)]
    log = folder / "mock.log"
    with _running("mock engine", command, port=port, ready_path="/health", log=log) as process:
        yield Server("mock engine, bare", port, process)


def _set_price(store: Store) -> None:
    tenth = Decimal("0.1")
    rates = Rates(tenth, tenth, tenth)
    Tariff(store.database, store.clock).override(MODEL, rates, tier="default", currency="USD")


def set_quota(store: Store, project_id: str) -> None:
    """Set what a tenant usually has: a price, requests and tokens a minute, a budget."""
    _set_price(store)
    store.tenancy.limits.set(
        LimitKey(LimitScope.PROJECT, project_id),
        requests_per_minute=10**9,
        tokens_per_minute=10**12,
        monthly_budget=Decimal(10**6),
    )


def limit_everything(store: Store, project_id: str) -> None:
    """Set a price and every kind of limit, on organisation, project and model; none is reached."""
    _set_price(store)
    organization_id = store.tenancy.projects.get(project_id).organization_id
    for scope, scope_id in (
        (LimitScope.ORGANIZATION, organization_id),
        (LimitScope.PROJECT, project_id),
        (LimitScope.MODEL, MODEL),
    ):
        store.tenancy.limits.set(
            LimitKey(scope, scope_id),
            requests_per_minute=10**9,
            tokens_per_minute=10**12,
            concurrent_requests=10**6,
            tokens_per_day=10**12,
            monthly_budget=Decimal(10**6),
        )


@contextmanager
def our_gateway(
    folder: Path,
    engine_port: int,
    *,
    name: str = "maas gateway",
    set_limits: Callable[[Store, str], None] = limit_everything,
) -> Iterator[Server]:
    """Run the gateway as ``maas up`` runs it, over a store of its own with one key."""
    port = free_port()
    settings = Settings(home=folder / name.replace(" ", "-"), port=port, metrics_port=free_port())
    store = open_store(settings)
    project_id = ensure_project(store.database, store.clock)
    _, key = store.keys.create(project_id=project_id, name="bench", scopes=("inference",))
    set_limits(store, project_id)
    url = f"http://127.0.0.1:{engine_port}"
    deployment = store.deployments.create(
        project_id=project_id, model_id=MODEL, engine="external", options={"url": url}
    )
    now = time.time()
    replica = Replica(
        id=f"{deployment.id}-0",
        deployment_id=deployment.id,
        url=url,
        engine_model=MODEL,
        state=ReplicaState.READY,
        started_at=now,
        expires_at=now + 24 * 3600,
    )
    store.replicas.publish(replica)
    store.database.close()
    command = [sys.executable, "-m", "maas.bootstrap.gateway", str(save_settings(settings))]
    log = folder / f"{settings.home.name}.log"
    with _running(name, command, port=port, ready_path="/readyz", log=log) as process:
        yield Server(name, port, process, key)


@contextmanager
def bare_relay(folder: Path, engine_port: int) -> Iterator[Server]:
    """Run our relay with nothing in it."""
    port = free_port()
    url = f"http://127.0.0.1:{engine_port}"
    command = [sys.executable, "-m", "benchmarks.gateway.bare_relay", str(port), url]
    log = folder / "bare.log"
    with _running("bare relay", command, port=port, ready_path="/health", log=log) as process:
        yield Server("bare relay", port, process)


@contextmanager
def vllm_router(folder: Path, engine_port: int, venv: Path) -> Iterator[Server]:
    """Run the Rust router with its cheapest policy for one worker and nothing logged."""
    port = free_port()
    command = [
        str(venv / "bin" / "vllm-router"),
        *("--host", "127.0.0.1", "--port", str(port)),
        *("--worker-urls", f"http://127.0.0.1:{engine_port}"),
        *("--policy", "round_robin", "--log-level", "error"),
        *("--prometheus-host", "127.0.0.1", "--prometheus-port", str(free_port())),
    ]
    log = folder / "router.log"
    with _running(ROUTER, command, port=port, ready_path="/health", log=log) as process:
        yield Server("vllm-router 0.1.17", port, process)


@contextmanager
def litellm_proxy(folder: Path, engine_port: int, venv: Path) -> Iterator[Server]:
    """Run the LiteLLM proxy: one worker, a master key, no database, no telemetry."""
    port = free_port()
    config = folder / "litellm.yaml"
    config.write_text(
        f"""
model_list:
  - model_name: {MODEL}
    litellm_params:
      model: openai/{MODEL}
      api_base: http://127.0.0.1:{engine_port}/v1
      api_key: none
litellm_settings:
  telemetry: false
  set_verbose: false
general_settings:
  master_key: {_LITELLM_KEY}
""",
        encoding="utf-8",
    )
    command = [
        str(venv / "bin" / "litellm"),
        *("--config", str(config), "--host", "127.0.0.1", "--port", str(port)),
        *("--num_workers", "1", "--telemetry", "False"),
    ]
    environment = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR"}
    log = folder / "litellm.log"
    with _running(
        LITELLM,
        command,
        port=port,
        ready_path="/health/liveliness",
        log=log,
        environment=environment,
    ) as process:
        yield Server("LiteLLM proxy 1.106.0", port, process, _LITELLM_KEY)


def peer_venv(name: str) -> Path:
    """Return a peer's own environment, made in the user's cache folder where it is not there."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    requirements = PINNED[name]
    folder = cache / "maas-benchmarks" / requirements[0].replace("==", "-").replace("[proxy]", "")
    # Written last: an environment that was cut off half way is made anew.
    marker = folder / "complete"
    if not marker.exists():
        print(f"installing {requirements[0]} into a cached environment ...", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "-q"]
        subprocess.run([*pip, "--disable-pip-version-check", *requirements], check=True)
        marker.touch()
    return folder
