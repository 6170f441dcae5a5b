"""The gateway's process: ``python -m maas.bootstrap.gateway SETTINGS_FILE``."""

import asyncio
import contextlib
import ctypes
import gc
import signal
import socket
from collections.abc import Callable
from functools import partial

import uvicorn
import uvloop
from starlette.types import ASGIApp

from maas.bootstrap.adapters import open_registry
from maas.bootstrap.child import begin
from maas.bootstrap.prices import card_prices
from maas.bootstrap.store import Store, open_store
from maas.catalog.card import Modality
from maas.catalog.catalog import load_catalog
from maas.catalog.machine import Machine, probe_machine
from maas.core.settings import Settings
from maas.edge.export.charges import ExportLedger
from maas.engines.contract import EngineCapabilities, for_model
from maas.engines.external import declared
from maas.engines.registry import get_engine
from maas.finetune.charges import TrainingLedger
from maas.finetune.recipe import load_recipes
from maas.gateway.adapters.service import BroughtAdapters
from maas.gateway.app import Gateway, create_gateway
from maas.gateway.control import Workshop
from maas.gateway.direct import GatewayProtocol
from maas.gateway.exports.service import Exports
from maas.gateway.facts import ModelFacts
from maas.gateway.fine_tuning.service import FineTuning
from maas.gateway.relay.snapshot import Sources
from maas.ledger.books import Books
from maas.ledger.ledger import Ledger
from maas.store.blobs import open_blobs
from maas.store.bundles import BundleRepository
from maas.store.exports import ExportRepository
from maas.store.files import FileRepository
from maas.store.fleet import open_fleet
from maas.store.records import Deployment
from maas.store.secrets import Sealing, SecretBox
from maas.store.uploads import UploadRepository

METRICS_HOST = "127.0.0.1"
SHUTDOWN_GRACE_S = 3
_M_ARENA_MAX = -8  # malloc.h of glibc
_MEDIA = frozenset({Modality.IMAGE, Modality.AUDIO, Modality.VIDEO, Modality.MULTIMODAL})


def describe_with(settings: Settings) -> Callable[[str], ModelFacts]:
    """Return what tells the gateway the facts of a model id."""
    catalog = load_catalog(settings.models_dir)

    def describe(model_id: str) -> ModelFacts:
        card = catalog.get(model_id)
        if card is None:
            return ModelFacts(id=model_id, owned_by="external")
        return ModelFacts(
            id=card.id,
            owned_by=card.origin,
            context=card.context,
            task=card.task,
            is_multimodal=not _MEDIA.isdisjoint(card.modality),
            tokenizer_path=settings.weights_dir / card.id / "tokenizer.json",
        )

    return describe


def connect_with(
    settings: Settings,
) -> Callable[[Deployment], tuple[EngineCapabilities, str | None]]:
    """Return what tells the gateway how to talk to a deployment's engine."""
    secrets = SecretBox(settings.home)
    catalog = load_catalog(settings.models_dir)

    def connect(deployment: Deployment) -> tuple[EngineCapabilities, str | None]:
        options = deployment.options
        sealed = options.get("secret")
        authorization = f"Bearer {secrets.open(str(sealed))}" if sealed else None
        if deployment.engine == "external":
            return declared(options.get("capabilities") or {}), authorization
        capabilities = get_engine(deployment.engine).capabilities
        card = catalog.get(deployment.card_id)
        if card is not None:
            capabilities = for_model(
                capabilities,
                card.task,
                has_chat=card.chat_template is not None,
                has_tools=card.tool_call_parser is not None,
            )
        return capabilities, authorization

    return connect


def _workshop(settings: Settings, store: Store, ledger: Ledger, sealing: Sealing) -> Workshop:
    files = FileRepository(store.database, store.clock)
    books = Books(store.database, store.clock)
    cards = load_catalog(settings.models_dir)
    return Workshop(
        blobs=open_blobs(settings),
        brought_adapters=BroughtAdapters(
            registry=open_registry(settings, store),
            files=files,
            deployments=store.deployments,
            cards=cards,
            weights_dir=settings.weights_dir,
        ),
        exports=Exports(
            database=store.database,
            exports=ExportRepository(store.database, store.clock),
            ledger=ExportLedger(store.database, store.clock, books, ledger.tariff),
            tuned_models=store.tuned_models,
            aliases=store.aliases,
            cards=cards,
            machine=partial(_machine, settings),
            max_unfinished=settings.finetune.max_unfinished_jobs,
        ),
        bundles=BundleRepository(store.database, store.clock),
        fleet=open_fleet(store.database, store.clock, sealing),
        files=files,
        uploads=UploadRepository(store.database, store.clock),
        fine_tuning=FineTuning(
            database=store.database,
            jobs=store.jobs,
            files=files,
            tuned_models=store.tuned_models,
            ledger=TrainingLedger(store.database, store.clock, books, ledger.tariff),
            recipes=load_recipes(settings.finetune.recipes_dir),
            cards=cards,
            max_unfinished=settings.finetune.max_unfinished_jobs,
            has_gpu=partial(_has_gpu, settings),
        ),
    )


def _has_gpu(settings: Settings) -> bool | None:
    machine = _machine(settings)
    return None if machine is None else bool(machine.gpus)


def _machine(settings: Settings) -> Machine | None:
    """Return what this machine has; nothing where work runs elsewhere."""
    return None if settings.serving.ray_address is not None else probe_machine(settings.weights_dir)


def make_gateway(settings: Settings, store: Store) -> Gateway:
    """Put the gateway of this machine together."""
    secrets = SecretBox(settings.home)
    sealing = Sealing(secrets.seal, secrets.open)
    ledger = Ledger(store.database, store.clock, settings.ledger_dir)
    ledger.tariff.sync(card_prices(load_catalog(settings.models_dir)))
    return create_gateway(
        settings.gateway,
        Sources(store.state, store.leases, ledger.tariff),
        ledger,
        store.tenancy,
        _workshop(settings, store, ledger, sealing),
        describe=describe_with(settings),
        connect=connect_with(settings),
        sealing=sealing,
        access_log=settings.logs_dir / "access.log",
    )


def _server(app: ASGIApp) -> uvicorn.Server:
    return uvicorn.Server(
        uvicorn.Config(
            app,
            http=GatewayProtocol,
            proxy_headers=False,
            lifespan="off",
            access_log=False,
            server_header=False,
            date_header=False,
            log_config=None,
            timeout_keep_alive=75,
            timeout_graceful_shutdown=SHUTDOWN_GRACE_S,
            h11_max_incomplete_event_size=64 * 1024,
        )
    )


def _listen(host: str, port: int) -> socket.socket:
    listener = socket.create_server((host, port), backlog=4096, reuse_port=False)
    listener.setblocking(False)
    return listener


def share_one_heap() -> None:
    """Let all threads allocate from one heap.

    glibc gives each thread its own. Those that write to the store take turns, so each of their
    heaps would grow to the size of the largest write, a tenth of our memory in all.
    """
    with contextlib.suppress(AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)


async def run(settings: Settings) -> None:
    """Serve until asked to stop."""
    gateway = make_gateway(settings, open_store(settings))
    await gateway.start()
    # What is here now stays: no collection needs to look at it again. Requests leave little
    # behind, so looking rarely costs nothing but a few percent less of the processor.
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
    servers = [_server(gateway.asgi), _server(gateway.metrics_asgi)]
    listeners = [
        _listen(settings.host, settings.port),
        _listen(METRICS_HOST, settings.metrics_port),
    ]

    def stop() -> None:
        for server in servers:
            server.should_exit = True

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    serving = [
        # _serve, not serve: that one takes over signals of the whole process.
        asyncio.create_task(server._serve(sockets=[listener]))
        for server, listener in zip(servers, listeners, strict=True)
    ]
    await asyncio.gather(*serving)
    await gateway.stop()


if __name__ == "__main__":
    share_one_heap()
    uvloop.run(run(begin()))
