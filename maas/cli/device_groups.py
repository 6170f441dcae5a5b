"""``maas device group`` and ``maas device channel``."""

from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from maas.cli.client import KeyOption, UrlOption, client_of
from maas.cli.metadata import MetadataOption, parse_metadata
from maas.cli.output import JsonFlag, emit
from maas.cli.pages import AfterOption, print_page
from maas.core.errors import ConfigError

groups = typer.Typer(help="Groups: list, show, create, set, delete.", no_args_is_help=True)
channels = typer.Typer(help="Channels: list, show, set, clear, delete.", no_args_is_help=True)
_GROUPS, _CHANNELS = "/devices/groups", "/devices/channels"
_GROUP_COLUMNS = ("name", "channel", "bundle_id", "fallback_model", "heartbeat_s")
_CHANNEL_COLUMNS = ("name", "bundle_id")
_ChannelOption = Annotated[str | None, typer.Option("--channel", help="Channel it follows.")]
_BundleOption = Annotated[
    str | None,
    typer.Option("--bundle", help="Bundle that all of it run, whatever the channel has."),
]
_FallbackOption = Annotated[
    str | None, typer.Option("--fallback-model", help="The one model its devices may ask here.")
]
_LimitOption = Annotated[int, typer.Option("--limit", min=1, max=100, help="Most of them.")]
_HeartbeatOption = Annotated[
    int | None, typer.Option("--heartbeat-s", min=1, max=86_400, help="Seconds between heartbeats.")
]


@groups.command("list")
def list_groups(
    limit: _LimitOption = 100,
    after: AfterOption = None,
    url: UrlOption = None,
    key: KeyOption = None,
    as_json: JsonFlag = False,
) -> None:
    """List groups; --after takes a name."""
    page = client_of(url, key).get(_GROUPS, limit=limit, after=after)
    _emit_page(page, _GROUP_COLUMNS, as_json=as_json)


@groups.command("show")
def show_group(
    name: str, url: UrlOption = None, key: KeyOption = None, as_json: JsonFlag = False
) -> None:
    """Show a group."""
    _emit_one(client_of(url, key).get(f"{_GROUPS}/{name}"), _GROUP_COLUMNS, as_json=as_json)


@groups.command("create")
def create_group(  # noqa: PLR0913 - its options
    name: str,
    channel: _ChannelOption = None,
    bundle: _BundleOption = None,
    fallback_model: _FallbackOption = None,
    heartbeat_s: _HeartbeatOption = None,
    metadata: MetadataOption = None,
    url: UrlOption = None,
    key: KeyOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Make a group."""
    body = {"name": name, **_given(channel, bundle, fallback_model, heartbeat_s, metadata)}
    _emit_one(client_of(url, key).post(_GROUPS, body), _GROUP_COLUMNS, as_json=as_json)


@groups.command("set")
def set_group(  # noqa: PLR0913 - its options
    name: str,
    channel: _ChannelOption = None,
    bundle: _BundleOption = None,
    unpin: Annotated[bool, typer.Option("--unpin", help="Let the channel decide again.")] = False,
    fallback_model: _FallbackOption = None,
    no_fallback: Annotated[
        bool, typer.Option("--no-fallback", help="Let its devices ask no model here.")
    ] = False,
    heartbeat_s: _HeartbeatOption = None,
    metadata: MetadataOption = None,
    url: UrlOption = None,
    key: KeyOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Change a group; another fallback model changes its devices' keys at once."""
    changes: dict[str, Any] = {"bundle_id": None} if unpin else {}
    changes |= {"fallback_model": None} if no_fallback else {}
    changes |= _given(channel, bundle, fallback_model, heartbeat_s, metadata)
    if not changes:
        raise ConfigError("nothing to change: see maas device group set --help")
    changed = client_of(url, key).post(f"{_GROUPS}/{name}", changes)
    _emit_one(changed, _GROUP_COLUMNS, as_json=as_json)


@groups.command("delete")
def delete_group(
    name: str, url: UrlOption = None, key: KeyOption = None, as_json: JsonFlag = False
) -> None:
    """Remove a group that no device is in."""
    gone = client_of(url, key).delete(f"{_GROUPS}/{name}")
    emit(gone, as_json=as_json, render=lambda console: console.print(f"{name} is deleted"))


@channels.command("list")
def list_channels(
    limit: _LimitOption = 100,
    after: AfterOption = None,
    url: UrlOption = None,
    key: KeyOption = None,
    as_json: JsonFlag = False,
) -> None:
    """List channels; --after takes a name."""
    page = client_of(url, key).get(_CHANNELS, limit=limit, after=after)
    _emit_page(page, _CHANNEL_COLUMNS, as_json=as_json)


@channels.command("show")
def show_channel(
    name: str, url: UrlOption = None, key: KeyOption = None, as_json: JsonFlag = False
) -> None:
    """Show a channel."""
    _emit_one(client_of(url, key).get(f"{_CHANNELS}/{name}"), _CHANNEL_COLUMNS, as_json=as_json)


@channels.command("set")
def set_channel(
    name: str,
    bundle: Annotated[str, typer.Option("--bundle", help="Bundle that its devices run.")],
    url: UrlOption = None,
    key: KeyOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Give all devices of a channel a bundle at once, without stages."""
    changed = client_of(url, key).post(f"{_CHANNELS}/{name}", {"bundle_id": bundle})
    _emit_one(changed, _CHANNEL_COLUMNS, as_json=as_json)


@channels.command("clear")
def clear_channel(
    name: str, url: UrlOption = None, key: KeyOption = None, as_json: JsonFlag = False
) -> None:
    """Take a channel's bundle away; its devices keep what they run."""
    client = client_of(url, key)
    # Setting makes a channel where there is none: a mistyped name must not.
    client.get(f"{_CHANNELS}/{name}")
    changed = client.post(f"{_CHANNELS}/{name}", {"bundle_id": None})
    _emit_one(changed, _CHANNEL_COLUMNS, as_json=as_json)


@channels.command("delete")
def delete_channel(
    name: str, url: UrlOption = None, key: KeyOption = None, as_json: JsonFlag = False
) -> None:
    """Remove a channel that nothing follows."""
    gone = client_of(url, key).delete(f"{_CHANNELS}/{name}")
    emit(gone, as_json=as_json, render=lambda console: console.print(f"{name} is deleted"))


def _given(
    channel: str | None,
    bundle: str | None,
    fallback_model: str | None,
    heartbeat_s: int | None,
    metadata: list[str] | None,
) -> dict[str, Any]:
    given = {
        "channel": channel,
        "bundle_id": bundle,
        "fallback_model": fallback_model,
        "heartbeat_s": heartbeat_s,
        "metadata": parse_metadata(metadata),
    }
    return {name: value for name, value in given.items() if value is not None}


def _emit_page(page: dict[str, Any], columns: tuple[str, ...], *, as_json: bool) -> None:
    def render(console: Console) -> None:
        print_page(console, _table(page["data"], columns), page)

    emit(page, as_json=as_json, render=render)


def _emit_one(item: dict[str, Any], columns: tuple[str, ...], *, as_json: bool) -> None:
    emit(item, as_json=as_json, render=lambda console: console.print(_table([item], columns)))


def _table(items: list[dict[str, Any]], columns: tuple[str, ...]) -> Table:
    table = Table(*columns)
    for item in items:
        table.add_row(*(str(item[name] or "") for name in columns))
    return table
