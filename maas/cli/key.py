"""``maas key``: API keys, made, listed and revoked."""

import time
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from maas.bootstrap import Store, open_store, resolve_settings
from maas.cli.output import JsonFlag, emit
from maas.store.records import ApiKey
from maas.store.state import ensure_project

app = typer.Typer(help="API keys: make, list, revoke.", no_args_is_help=True)

_GATEWAYS_TIMEOUT_S = 2.0


def _public(key: ApiKey) -> dict[str, Any]:
    """Return what may be shown of a key."""
    fields = asdict(key)
    del fields["salt"], fields["digest"]
    return fields


def _wait_for_gateways(store: Store) -> None:
    """Return when every running gateway knows of the change, so that scripts can go on."""
    deadline = time.monotonic() + _GATEWAYS_TIMEOUT_S
    while not store.leases.are_gateways_current() and time.monotonic() < deadline:
        time.sleep(0.02)


@app.command()
def create(
    name: Annotated[str, typer.Option(help="What the key is for.")],
    admin: Annotated[bool, typer.Option("--admin", help="Let it administer, too.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Make a key. It is shown once: only a salted hash is stored."""
    store = open_store(resolve_settings())
    record, full_key = store.keys.create(
        project_id=ensure_project(store.database, store.clock),
        name=name,
        scopes=("inference", "admin") if admin else ("inference",),
    )
    _wait_for_gateways(store)

    def render(console: Console) -> None:
        console.print(f"key   {full_key}\nid    {record.id}\nIt is not shown again.")

    emit({"key": full_key, **_public(record)}, as_json=as_json, render=render)


@app.command("list")
def list_keys(as_json: JsonFlag = False) -> None:
    """List the keys, revoked ones too."""
    keys = open_store(resolve_settings()).keys.list()

    def render(console: Console) -> None:
        table = Table("id", "name", "scopes", "made", "state")
        for key in keys:
            made = time.strftime("%Y-%m-%d %H:%M", time.localtime(key.created_at))
            state = "revoked" if key.revoked_at else "active"
            table.add_row(key.id, key.name, ", ".join(key.scopes), made, state)
        console.print(table)

    emit({"keys": [_public(key) for key in keys]}, as_json=as_json, render=render)


@app.command()
def revoke(key_id: str, as_json: JsonFlag = False) -> None:
    """Revoke a key by its id; no gateway accepts it when this returns."""
    store = open_store(resolve_settings())
    record = store.keys.revoke(key_id)
    _wait_for_gateways(store)
    emit(
        _public(record),
        as_json=as_json,
        render=lambda console: console.print(f"revoked {record.id} ({record.name})"),
    )
