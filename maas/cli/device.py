"""``maas device``: the fleet; codes, groups, channels and rollouts have modules of their own."""

from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from maas.cli import device_codes, device_groups, device_rollouts
from maas.cli.client import KeyOption, UrlOption, client_of
from maas.cli.metadata import MetadataOption, parse_metadata
from maas.cli.output import JsonFlag, emit, moment
from maas.cli.pages import AfterOption, print_page
from maas.core.errors import ConfigError

app = typer.Typer(help="Devices: enrol, watch, assign, retire; rollouts.", no_args_is_help=True)
app.command("enrol-code")(device_codes.enrol_code)
app.add_typer(device_codes.app, name="code")
app.add_typer(device_groups.groups, name="group")
app.add_typer(device_groups.channels, name="channel")
app.add_typer(device_rollouts.app, name="rollout")
_DEVICES = "/devices"


def _short(bundle_id: str | None) -> str:
    return (bundle_id or "")[:12]


@app.command("list")
def list_devices(  # noqa: PLR0913 - its options
    group: Annotated[str | None, typer.Option(help="Only those of this group.")] = None,
    channel: Annotated[str | None, typer.Option(help="Only those of this channel.")] = None,
    bundle: Annotated[str | None, typer.Option(help="Only those that run this bundle.")] = None,
    retired: Annotated[bool, typer.Option("--retired", help="Those that are no more.")] = False,
    limit: Annotated[int, typer.Option(min=1, max=100, help="Most devices.")] = 20,
    after: AfterOption = None,
    url: UrlOption = None,
    key: KeyOption = None,
    as_json: JsonFlag = False,
) -> None:
    """List devices, newest first."""
    page = client_of(url, key).get(
        _DEVICES,
        limit=limit,
        after=after,
        status="retired" if retired else "enrolled",
        group=group,
        channel=channel,
        bundle_id=bundle,
    )

    def render(console: Console) -> None:
        table = Table("id", "name", "group", "online", "runs", "should run", "seen")
        for item in page["data"]:
            table.add_row(
                item["id"],
                item["name"],
                item["group"],
                "yes" if item["is_online"] else "no",
                _short((item["reported"] or {}).get("bundle_id")),
                _short(item["desired_bundle_id"]),
                moment(item["last_seen_at"]),
            )
        print_page(console, table, page)

    emit(page, as_json=as_json, render=render)


@app.command()
def show(
    device_id: str, url: UrlOption = None, key: KeyOption = None, as_json: JsonFlag = False
) -> None:
    """Show a device and its last heartbeat."""
    _show(client_of(url, key).get(f"{_DEVICES}/{device_id}"), as_json=as_json)


@app.command()
def events(
    device_id: str,
    limit: Annotated[int, typer.Option(min=1, max=100, help="Most events.")] = 20,
    after: AfterOption = None,
    url: UrlOption = None,
    key: KeyOption = None,
    as_json: JsonFlag = False,
) -> None:
    """List what happened to a device, newest first."""
    page = client_of(url, key).get(f"{_DEVICES}/{device_id}/events", limit=limit, after=after)

    def render(console: Console) -> None:
        table = Table("at", "level", "type", "message")
        for item in page["data"]:
            table.add_row(moment(item["created_at"]), item["level"], item["type"], item["message"])
        print_page(console, table, page)

    emit(page, as_json=as_json, render=render)


@app.command()
def assign(  # noqa: PLR0913 - its options
    device_id: str,
    name: Annotated[str | None, typer.Option(help="What it is called from now on.")] = None,
    group: Annotated[str | None, typer.Option(help="Group to move it to.")] = None,
    channel: Annotated[str | None, typer.Option(help="Channel of its own.")] = None,
    bundle: Annotated[str | None, typer.Option(help="Bundle to bind it to.")] = None,
    unpin: Annotated[
        bool, typer.Option("--unpin", help="Let its group decide bundle and channel again.")
    ] = False,
    metadata: MetadataOption = None,
    url: UrlOption = None,
    key: KeyOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Change a device: what decides about it, its name, its metadata."""
    given = {
        "name": name,
        "group": group,
        "channel": channel,
        "bundle_id": bundle,
        "metadata": parse_metadata(metadata),
    }
    changes: dict[str, Any] = {"channel": None, "bundle_id": None} if unpin else {}
    changes |= {attribute: value for attribute, value in given.items() if value is not None}
    if not changes:
        raise ConfigError("nothing to change: see maas device assign --help")
    _show(client_of(url, key).post(f"{_DEVICES}/{device_id}", changes), as_json=as_json)


@app.command()
def retire(
    device_id: str, url: UrlOption = None, key: KeyOption = None, as_json: JsonFlag = False
) -> None:
    """End a device: its key is revoked at once."""
    gone = client_of(url, key).delete(f"{_DEVICES}/{device_id}")
    emit(gone, as_json=as_json, render=lambda console: console.print(f"{gone['id']} is retired"))


@app.command()
def summary(url: UrlOption = None, key: KeyOption = None, as_json: JsonFlag = False) -> None:
    """Count devices by status, group and bundle, with the medians of their speeds."""
    found = client_of(url, key).get(f"{_DEVICES}/summary")

    def render(console: Console) -> None:
        table = Table("what", "devices")
        table.add_row("online", str(found["online"]))
        for what in ("by_status", "by_group", "by_bundle"):
            for name, count in sorted(found[what].items()):
                shown = _short(name) if what == "by_bundle" else name
                table.add_row(f"{what.removeprefix('by_')} {shown}", str(count))
        console.print(table)
        for name, speed in found["speed"].items():
            if speed["median"] is not None:
                console.print(f"{name}   {speed['median']:.2f} (median of {speed['num_devices']})")

    emit(found, as_json=as_json, render=render)


def _show(device: dict[str, Any], *, as_json: bool) -> None:
    def render(console: Console) -> None:
        reported = device["reported"] or {}
        rows = {
            **{name: device[name] for name in ("id", "name", "status", "group", "channel")},
            "pinned to": device["bundle_id"],
            "should run": device["desired_bundle_id"],
            "runs": reported.get("bundle_id"),
            "state": reported.get("state"),
            "online": "yes" if device["is_online"] else "no",
            "seen": moment(device["last_seen_at"]),
        }
        table = Table(show_header=False, box=None)
        for name, value in rows.items():
            table.add_row(name, str(value or ""))
        console.print(table)

    emit(device, as_json=as_json, render=render)
