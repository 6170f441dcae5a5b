"""``maas-edge enrol|fleet|leave|agent``: a device in a fleet."""

import asyncio
import time
from importlib.metadata import version
from typing import Annotated, Any
from urllib.parse import urlsplit

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from maas.core.errors import NotFound
from maas.edge.runtime.bundle.signing import key_id_of
from maas.edge.runtime.cli.flags import (
    DEFAULTS,
    KV_CACHE_MB,
    PREFIX_CACHE_MB,
    AllowOrigin,
    Cool,
    Host,
    KvCacheMb,
    MaxModelLen,
    MaxNumSeqs,
    Pace,
    PaceMode,
    Port,
    PrefixCacheMb,
    ServedModelName,
    Threads,
    engine_options,
)
from maas.edge.runtime.cli.shared import JsonFlag, emit, open_shelf, warn
from maas.edge.runtime.fleet.agent import AgentSettings, one_agent, run_agent
from maas.edge.runtime.fleet.gateway import enrol_device
from maas.edge.runtime.fleet.identity import (
    Identity,
    forget_identity,
    gateway_url,
    identity_path,
    read_identity,
)
from maas.edge.runtime.fleet.state import read_state, state_path
from maas.edge.runtime.fleet.telemetry import read_machine
from maas.edge.runtime.server.guard import allowed_origins
from maas.edge.runtime.server.serve import Address

_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


def enrol(
    url: Annotated[str, typer.Argument(help="The gateway's URL.")],
    code: Annotated[str, typer.Option(envvar="MAAS_EDGE_CODE", help="The one-time code.")],
    name: Annotated[str | None, typer.Option(help="The device's name in the fleet.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Make this device one of a gateway's fleet; the same again goes on from what was lost."""
    gateway = gateway_url(url)
    parts = urlsplit(gateway)
    if parts.scheme == "http" and parts.hostname not in _LOOPBACK:
        warn(f"{gateway}: without https, everybody on the way can read this device's key")
    facts = {"agent_version": version("maas"), "machine": msgspec.to_builtins(read_machine())}
    identity = asyncio.run(
        enrol_device(open_shelf().home, gateway, code.strip(), name=name, facts=facts)
    )
    shown = {
        "device_id": identity.device_id,
        "name": identity.name,
        "gateway": identity.gateway,
        "bundle_public_key": identity.bundle_public_key,
    }
    emit(
        shown,
        as_json=as_json,
        render=lambda console: console.print(
            f"enrolled as {identity.device_id} at {identity.gateway}{_whose(identity)}; now: "
            "maas-edge agent",
            soft_wrap=True,
        ),
    )


def show_fleet(as_json: JsonFlag = False) -> None:
    """Show whose device this is, and when the gateway last answered."""
    home = open_shelf().home
    identity, state = read_identity(home), read_state(home)
    if identity is None:
        raise NotFound("this device is in no fleet: maas-edge enrol URL --code CODE")
    contact, failed = state.contact, state.failed
    shown: dict[str, Any] = {
        "gateway": identity.gateway,
        "device_id": identity.device_id,
        "name": identity.name,
        "is_enrolled": identity.key is not None,
        "bundle_public_key": identity.bundle_public_key,
        "last_contact_at": int(contact.at) if contact else None,
        "fallback_model": contact.fallback_model if contact else None,
        "desired": msgspec.to_builtins(contact.desired) if contact else None,
        "failed": msgspec.to_builtins(failed),
    }

    def render(console: Console) -> None:
        table = Table(show_header=False, box=None)
        for label, value in shown.items():
            table.add_row(label, _said(label, value))
        console.print(table)

    emit(shown, as_json=as_json, render=render)


def leave() -> None:
    """Forget the fleet; bundles stay. The gateway is not told: retire the device there."""
    home = open_shelf().home
    if not identity_path(home).exists():
        raise NotFound("this device is in no fleet")
    with one_agent(home):
        forget_identity(home, state_path(home))
    Console().print("this device is in no fleet any more")


def agent(  # noqa: PLR0913 - one a flag
    host: Host = "127.0.0.1",
    port: Port = 8081,
    served_model_name: ServedModelName = None,
    threads: Threads = 0,
    cool: Cool = False,
    pace: Pace = PaceMode.AUTO,
    max_num_seqs: MaxNumSeqs = DEFAULTS.max_num_seqs,
    max_model_len: MaxModelLen = DEFAULTS.max_model_len,
    kv_cache_mb: KvCacheMb = KV_CACHE_MB,
    prefix_cache_mb: PrefixCacheMb = PREFIX_CACHE_MB,
    no_cloud: Annotated[
        bool, typer.Option("--no-cloud", help="Answer here or not at all.")
    ] = False,
    min_battery: Annotated[
        float, typer.Option(min=0, max=100, help="Below it, in percent, the cloud answers.")
    ] = 20.0,
    allow_origin: AllowOrigin = None,
) -> None:
    """Serve OpenAI's API, take updates from the fleet, and ask the cloud what this cannot."""
    options = engine_options(
        threads,
        cool=cool,
        pace=pace,
        max_num_seqs=max_num_seqs,
        max_model_len=max_model_len,
        kv_cache_bytes=kv_cache_mb << 20,
        prefix_cache_bytes=prefix_cache_mb << 20,
    )
    settings = AgentSettings(
        home=open_shelf().home,
        address=Address(host, port),
        options=options,
        served_model_name=served_model_name,
        uses_cloud=not no_cloud,
        min_battery_percent=min_battery,
        allowed_origins=allowed_origins(allow_origin or ()),
    )
    asyncio.run(run_agent(settings, lambda at: warn(f"the agent answers on http://{host}:{at}/v1")))


def _whose(identity: Identity) -> str:
    key = identity.bundle_public_key
    return "" if key is None else f", whose bundles are signed by key {key_id_of(key)}"


def _said(label: str, value: Any) -> str:
    if value is None:
        return "never" if label == "last_contact_at" else ""
    if label == "last_contact_at":
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(value))
    if isinstance(value, dict):
        return f"{value['bundle_id'][:16]}, attempt {value['attempt']}"
    return str(value)
