"""A real gateway process's app over a real store, in front of fake engines."""

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import uvicorn
import uvloop
from httpx import Client, Response

from maas.bootstrap import open_store
from maas.bootstrap.gateway import make_gateway
from maas.bootstrap.store import Store
from maas.core.settings import Settings
from maas.gateway.direct import GatewayProtocol
from maas.ledger.prices import Rates
from maas.ledger.tariff import Tariff
from maas.store.records import Deployment, Replica, ReplicaState
from maas.store.state import ensure_project
from tests.api.tenant import PRICE, Tenant, new_tenant
from tests.conftest import STORES, fresh_store
from tests.fakes.engine import FakeEngine, fake_engine


@dataclass
class RunningGateway:
    """A gateway, its store, and a client with a good key."""

    url: str
    metrics_url: str
    key: str
    home: Path
    store: Store
    project_id: str
    client: Client

    def deploy(self, engine: FakeEngine, *, model: str = "tiny", **options: Any) -> Deployment:
        """Deploy a model served by a fake engine, its lease good for an hour."""
        deployment = self.store.deployments.create(
            project_id=self.project_id,
            model_id=model,
            engine="external",
            options={"url": engine.url, "max_model_len": engine.max_model_len, **options},
        )
        self.lease(deployment, engine)
        return deployment

    def lease(self, deployment: Deployment, engine: FakeEngine, *, name: str = "a") -> None:
        self.store.replicas.publish(
            Replica(
                id=f"{deployment.id}-{name}",
                deployment_id=deployment.id,
                url=engine.url,
                engine_model=engine.model,
                state=ReplicaState.READY,
                started_at=time.time(),
                expires_at=time.time() + 3600,
            )
        )
        self.wait_seen()

    def wait_seen(self) -> None:
        """Wait until the gateway has read the store anew."""
        time.sleep(0.12)
        deadline = time.monotonic() + 5
        # One that is late with its lease counts as gone there, and nobody else would be waited for.
        leases = self.store.leases
        while not (leases.count_gateways() and leases.are_gateways_current()):
            assert time.monotonic() < deadline, "the gateway does not read the store"
            time.sleep(0.02)

    def chat(self, content: str = "hello", **fields: Any) -> Response:
        body = {"model": "tiny", "messages": [{"role": "user", "content": content}], **fields}
        return self.client.post("/v1/chat/completions", json=body)


@pytest.fixture(scope="module")
def gateway_settings() -> dict[str, Any]:
    """Settings of the gateway that a module wants otherwise."""
    return {}


@pytest.fixture(scope="module", params=STORES)
def gateway(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    gateway_settings: dict[str, Any],
) -> Iterator[RunningGateway]:
    home = tmp_path_factory.mktemp("home")
    with (
        fresh_store(request, home, migrated=True) as store_url,
        running_gateway(home, store_url, **gateway_settings) as gateway,
    ):
        yield gateway


@contextmanager
def running_gateway(home: Path, store_url: str, **gateway: Any) -> Iterator[RunningGateway]:
    """Run a gateway in a thread of this process.

    Args:
        home: Its MAAS_HOME.
        store_url: Its store.
        gateway: Settings of its section.
    """
    settings = Settings.model_validate(
        {
            "home": home,
            "database_url": store_url,
            "gateway": {
                "snapshot_interval_s": 0.05,
                "max_body_bytes": 200_000,
                "idle_timeout_s": 2.0,
                "webhooks_allow_private": True,
                **gateway,
            },
        }
    )
    store = open_store(settings)
    project_id = ensure_project(store.database, store.clock)
    _, key = store.keys.create(project_id=project_id, name="test", scopes=("inference",))
    made = make_gateway(settings, store)
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    servers = [
        uvicorn.Server(
            uvicorn.Config(
                app,
                lifespan="off",
                log_config=None,
                access_log=False,
                http=GatewayProtocol,
                proxy_headers=False,
                timeout_graceful_shutdown=1,
            )
        )
        for app in (made.asgi, made.metrics_asgi)
    ]
    is_up = threading.Event()

    async def serve() -> None:
        await made.start()
        is_up.set()
        pairs = zip(servers, listeners, strict=True)
        await asyncio.gather(*(server._serve(sockets=[lst]) for server, lst in pairs))
        await made.stop()

    thread = threading.Thread(target=lambda: uvloop.run(serve()), daemon=True)
    thread.start()
    assert is_up.wait(10)
    url, metrics_url = (f"http://127.0.0.1:{lst.getsockname()[1]}" for lst in listeners)
    with Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=10) as client:
        yield RunningGateway(url, metrics_url, key, home, store, project_id, client)
    for server in servers:
        server.should_exit = True
    thread.join(10)
    assert not thread.is_alive()
    store.database.close()


@pytest.fixture(scope="module")
def engine(gateway: RunningGateway) -> Iterator[FakeEngine]:
    """A fake engine behind the model ``tiny``; what it saw is cleared for each test."""
    with fake_engine() as engine:
        gateway.deploy(engine)
        yield engine


@pytest.fixture(autouse=True)
def _fresh(request: pytest.FixtureRequest) -> None:
    if "engine" in request.fixturenames:
        engine: FakeEngine = request.getfixturevalue("engine")
        engine.requests.clear()
        engine.headers.clear()
        engine.paths.clear()
        engine.status = 200
        engine.num_aborts = 0


@pytest.fixture(scope="module")
def priced(gateway):
    """The model ``tiny`` costs a thousandth of a unit a token."""
    tariff = Tariff(gateway.store.database, gateway.store.clock)
    tariff.override("tiny", Rates(PRICE, PRICE, PRICE), tier="default", currency="USD")
    gateway.wait_seen()


@pytest.fixture
def tenant(gateway, engine, priced) -> Iterator[Tenant]:
    """A tenant with a project of its own."""
    with new_tenant(gateway) as made:
        yield made
