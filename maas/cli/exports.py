"""``maas exports``: exports of the platform; and how ``maas export`` has one made there."""

import time
from collections.abc import Callable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from maas.cli.client import GatewayClient, KeyOption, UrlOption, client_of
from maas.cli.output import JsonFlag, emit, moment
from maas.cli.pages import AfterOption, print_page
from maas.core.errors import BundleRefused, EngineError, SourceUnreachable
from maas.edge.export.spec import Progress
from maas.edge.runtime.bundle.archive import verify
from maas.edge.runtime.shelf.sources import Source

app = typer.Typer(help="Exports: list, show, events, cancel.", no_args_is_help=True)
_EXPORTS = "/exports"
_POLL_S = 0.5
_MAX_READS = 5
_OVER = frozenset({"succeeded", "failed", "cancelled"})


@app.command("list")
def list_exports(
    limit: Annotated[int, typer.Option(min=1, max=100, help="Most exports.")] = 20,
    after: AfterOption = None,
    url: UrlOption = None,
    key: KeyOption = None,
    as_json: JsonFlag = False,
) -> None:
    """List exports, newest first."""
    page = client_of(url, key).get(_EXPORTS, limit=limit, after=after)

    def render(console: Console) -> None:
        table = Table("id", "model", "precision", "status", "bundle")
        for item in page["data"]:
            made = (item["bundle_id"] or "")[:12]
            table.add_row(item["id"], item["model"], item["precision"], item["status"], made)
        print_page(console, table, page)

    emit(page, as_json=as_json, render=render)


@app.command()
def show(
    export_id: str, url: UrlOption = None, key: KeyOption = None, as_json: JsonFlag = False
) -> None:
    """Show an export."""
    print_export(client_of(url, key).get(f"{_EXPORTS}/{export_id}"), as_json=as_json)


@app.command()
def events(
    export_id: str,
    limit: Annotated[int, typer.Option(min=1, max=100, help="Most events.")] = 20,
    after: AfterOption = None,
    url: UrlOption = None,
    key: KeyOption = None,
    as_json: JsonFlag = False,
) -> None:
    """List what an export told, newest first."""
    page = client_of(url, key).get(f"{_EXPORTS}/{export_id}/events", limit=limit, after=after)

    def render(console: Console) -> None:
        table = Table("at", "level", "message")
        for item in page["data"]:
            table.add_row(moment(item["created_at"]), item["level"], item["message"])
        print_page(console, table, page)

    emit(page, as_json=as_json, render=render)


@app.command()
def cancel(
    export_id: str, url: UrlOption = None, key: KeyOption = None, as_json: JsonFlag = False
) -> None:
    """End an export now."""
    print_export(client_of(url, key).post(f"{_EXPORTS}/{export_id}/cancel"), as_json=as_json)


def print_export(export: dict[str, Any], *, as_json: bool) -> None:
    """Print an export."""

    def render(console: Console) -> None:
        table = Table(show_header=False, box=None)
        for name in ("id", "model", "target", "precision", "status", "bundle_id"):
            table.add_row(name, str(export[name] or ""))
        estimate = export["estimate"]
        if "max_cost" in estimate:
            least, most = (f"{Decimal(estimate[name]):f}" for name in ("cost", "max_cost"))
            cost = f"{least} to {most} {estimate['currency']}"
            table.add_row("estimate", f"{estimate['seconds']:.0f} s, {cost}")
        table.add_row("used", f"{export['used_seconds']:.0f} s")
        if export["error"]:
            table.add_row("error", str(export["error"]["message"]))
        console.print(table)

    emit(export, as_json=as_json, render=render)


def ask_for(client: GatewayClient, body: Mapping[str, Any]) -> dict[str, Any]:
    """Have the platform make a bundle; return the export as it stands, and wait for nothing."""
    return client.post(_EXPORTS, body)


def export_there(
    client: GatewayClient, body: Mapping[str, Any], report: Callable[[Progress], None]
) -> dict[str, Any]:
    """Have the platform make a bundle, and return the bundle's object.

    Raises:
        BundleRefused: It keeps too little of the original.
        EngineError: It ended without a bundle.
    """
    export = ask_for(client, body)
    while export["status"] not in _OVER:
        told = export["progress"] or {"phase": "queued", "percent": 0, "message": export["id"]}
        report(Progress.model_validate(told))
        time.sleep(_POLL_S)
        export = client.get(f"{_EXPORTS}/{export['id']}")
    if export["status"] == "succeeded":
        return client.get(f"/bundles/{export['bundle_id']}")
    error = export["error"] or {"code": "", "message": f"{export['id']} was {export['status']}"}
    kind = BundleRefused if error["code"] == BundleRefused.code else EngineError
    raise kind(error["message"])


def download(source: Source, bundle: Mapping[str, Any], out: Path) -> None:
    """Fetch a bundle into a file, going on where the connection ended; every part is checked.

    Raises:
        BundleRefused: What came is not the bundle.
        SourceUnreachable: The gateway stopped answering.
    """
    partial = out.with_name(f".{out.name}.{bundle['id'][:12]}.part")
    size = int(bundle["bytes"])
    with partial.open("ab") as stream:
        for num_left in reversed(range(_MAX_READS)):
            place = stream.tell()
            try:
                for chunk in source.read(place, size - place):
                    stream.write(chunk)
            except SourceUnreachable:
                if not num_left:
                    raise
            if stream.tell() >= size:
                break
    try:
        found = verify(partial, None).manifest.bundle_id
        if found != bundle["id"]:
            raise BundleRefused(f"the gateway sent bundle {found} in place of {bundle['id']}")
    except BundleRefused:
        partial.unlink()
        raise
    partial.replace(out)
