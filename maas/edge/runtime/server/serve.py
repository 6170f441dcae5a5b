"""Starts a server on an unpacked bundle and keeps it until it is told to stop."""

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web
from tokenizers import Tokenizer

from maas.core.errors import ConfigError, MaasError, PortTaken
from maas.edge.runtime.bundle.manifest import Adapter
from maas.edge.runtime.engine.contract import Engine
from maas.edge.runtime.engine.core import OnnxEngine
from maas.edge.runtime.engine.embed import EmbedEngine, is_embedding
from maas.edge.runtime.engine.options import EngineOptions
from maas.edge.runtime.server.adapters import AdapterRoutes
from maas.edge.runtime.server.app import EdgeServer
from maas.edge.runtime.server.calls import PARSERS
from maas.edge.runtime.server.guard import Guard
from maas.edge.runtime.server.reading import most_chars
from maas.edge.runtime.server.served import Served, Serving
from maas.edge.runtime.server.templates import load_template

log = logging.getLogger(__name__)

# The engine's thread waits for Python's lock this long at most when the server holds it.
_SWITCH_INTERVAL_S = 0.0005


@dataclass(frozen=True)
class Address:
    """Where a server listens."""

    host: str
    port: int


def open_engine(folder: Path, options: EngineOptions) -> Engine:
    """Open the engine a folder needs.

    Raises:
        ConfigError: There is no model in it.
    """
    return EmbedEngine(folder, options) if is_embedding(folder) else OnnxEngine(folder, options)


def open_served(
    folder: Path,
    name: str,
    options: EngineOptions,
    adapters: Sequence[Adapter] = (),
    *,
    tool_call_parser: str | None = None,
) -> Served:
    """Open all that a server answers with.

    Args:
        folder: The unpacked bundle.
        name: Of its model on the wire.
        options: Sizes and habits of the engine.
        adapters: Of the bundle; each answers under its name.
        tool_call_parser: The form in which its model writes tool calls; none: it writes none.

    Raises:
        ConfigError: The folder is no unpacked bundle.
        EngineError: An adapter does not fit its model.
    """
    try:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:
        # Its exceptions share no base but this one.
        raise ConfigError(f"{folder / 'tokenizer.json'}: not a tokenizer: {error}") from error
    template, max_token_chars = load_template(folder), most_chars(tokenizer)
    engine = open_engine(folder, options)
    try:
        for adapter in adapters:
            engine.load_adapter(adapter.name, folder / adapter.folder)
    except MaasError:
        engine.close()
        raise
    names = {adapter.name for adapter in adapters}
    reads_tools = tool_call_parser in PARSERS
    return Served(name, engine, tokenizer, template, max_token_chars, reads_tools, names)


async def serve(
    served: Served,
    address: Address,
    on_ready: Callable[[int], None],
    *,
    loads_adapters: bool = False,
    guard: Guard | None = None,
) -> None:
    """Serve until SIGINT or SIGTERM.

    Args:
        served: What to answer with.
        address: Where; port 0 takes a free one.
        on_ready: Told the port.
        loads_adapters: Whether whoever asks may load others: only where the platform alone asks.
        guard: Keeps web pages out; none: only where the platform alone asks.
    """
    stop = stop_when_told()
    serving = Serving(served)
    app = EdgeServer(serving).make_app()
    if loads_adapters:
        AdapterRoutes(serving).add_to(app)
    if guard is not None:
        guard.add_to(app)
    async with listening(app, address) as port:
        on_ready(port)
        await stop.wait()
        await asyncio.to_thread(served.engine.close)


def stop_when_told() -> asyncio.Event:
    """Return what is set by SIGINT or SIGTERM."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    return stop


@contextlib.asynccontextmanager
async def listening(app: web.Application, address: Address) -> AsyncIterator[int]:
    """Answer requests; yield the port.

    Raises:
        PortTaken: Something else listens there.
    """
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    # Texts are encoded in threads of ours; in threads of its own short ones wait for long ones.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Without it a client that leaves would have its answer computed to the end.
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, address.host, address.port).start()
        except OSError as error:
            raise PortTaken(f"{address.host}:{address.port}: {error.strerror}") from error
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()
