"""``maas key``: API keys, made, listed, rotated and revoked."""

import time
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from maas.bootstrap import Store, resolve_settings
from maas.bootstrap.keys import keep_admin_key
from maas.cli.durations import parse_duration
from maas.cli.output import JsonFlag, emit
from maas.cli.tenants import OrgOption, ProjectOption, find_project, opened, wait_for_gateways
from maas.core.errors import ConfigError
from maas.store.key_terms import KeyTerms
from maas.store.organizations import DEFAULT
from maas.store.records import ApiKey, Project
from maas.store.roles import ADMIN_SCOPE, DEVICE_SCOPE, INFERENCE_SCOPE

app = typer.Typer(help="API keys: make, list, rotate, revoke.", no_args_is_help=True)

_LIST_HELP = "separated by commas; none means all"


def _public(key: ApiKey) -> dict[str, Any]:
    """Return what may be shown of a key."""
    fields = asdict(key)
    del fields["salt"], fields["digest"]
    return fields


def _items(text: str | None) -> tuple[str, ...]:
    return tuple(part.strip() for part in (text or "").split(",") if part.strip())


@app.command()
def create(  # noqa: PLR0913 - a command line has as many options as it has
    name: Annotated[str, typer.Option(help="What the key is for.")],
    admin: Annotated[bool, typer.Option("--admin", help="Let it administer, too.")] = False,
    project: ProjectOption = DEFAULT,
    org: OrgOption = DEFAULT,
    models: Annotated[str | None, typer.Option(help=f"Models it may ask, {_LIST_HELP}.")] = None,
    endpoints: Annotated[
        str | None, typer.Option(help=f"Routes such as /v1/embeddings, {_LIST_HELP}.")
    ] = None,
    networks: Annotated[
        str | None, typer.Option(help=f"CIDR it is accepted from, {_LIST_HELP}.")
    ] = None,
    expires_in: Annotated[str | None, typer.Option(help="Such as 12h or 30d.")] = None,
    user: Annotated[str | None, typer.Option(help="Address of the user it belongs to.")] = None,
    service_account: Annotated[
        str | None, typer.Option(help="Id of the service account it belongs to.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Make a key. It is shown once: only a salted hash is stored."""
    store = opened()
    owner = find_project(store, project, org)
    if admin and (user is not None or service_account is not None):
        raise ConfigError("--admin is for keys of nobody; a role decides what others may do")
    lifetime = parse_duration(expires_in, "--expires-in") if expires_in is not None else None
    terms = KeyTerms(
        scopes=(INFERENCE_SCOPE, ADMIN_SCOPE) if admin else (INFERENCE_SCOPE,),
        user_id=_user_id(store, owner, user),
        service_account_id=service_account,
        models=_items(models),
        endpoints=_items(endpoints),
        networks=_items(networks),
        expires_at=store.clock.now() + lifetime if lifetime is not None else None,
    )
    record, full_key = store.keys.create(project_id=owner.id, name=name, terms=terms)
    wait_for_gateways(store)
    _emit_new(record, full_key, as_json=as_json)


def _user_id(store: Store, project: Project, email: str | None) -> str | None:
    if email is None:
        return None
    return store.tenancy.users.find_by_email(project.organization_id, email).id


def _emit_new(record: ApiKey, full_key: str, *, as_json: bool) -> None:
    def render(console: Console) -> None:
        console.print(f"key   {full_key}\nid    {record.id}\nIt is not shown again.")

    emit({"key": full_key, **_public(record)}, as_json=as_json, render=render)


@app.command("list")
def list_keys(
    project: Annotated[str | None, typer.Option(help="Only those of this project.")] = None,
    org: OrgOption = DEFAULT,
    as_json: JsonFlag = False,
) -> None:
    """List the keys, revoked ones too."""
    store = opened()
    every = store.keys.list(find_project(store, project, org).id if project else None)
    # A device's key comes and goes with the device: maas device list.
    keys = [key for key in every if DEVICE_SCOPE not in key.scopes]
    names = {item.id: item.name for item in store.state.read().projects}

    def render(console: Console) -> None:
        table = Table("id", "name", "project", "scopes", "made", "state")
        for key in keys:
            made = time.strftime("%Y-%m-%d %H:%M", time.localtime(key.created_at))
            scopes = ", ".join(key.scopes) or "by role"
            state = _state(key, store.clock.now())
            table.add_row(key.id, key.name, names[key.project_id], scopes, made, state)
        console.print(table)

    emit({"keys": [_public(key) for key in keys]}, as_json=as_json, render=render)


def _state(key: ApiKey, now: float) -> str:
    if key.revoked_at:
        return "revoked"
    if key.expires_at is None:
        return "active"
    moment = time.strftime("%Y-%m-%d %H:%M", time.localtime(key.expires_at))
    return f"{'expired' if key.expires_at <= now else 'active until'} {moment}"


@app.command()
def rotate(
    key_id: str,
    overlap: Annotated[str, typer.Option(help="How long the old one still works.")] = "1h",
    as_json: JsonFlag = False,
) -> None:
    """Make a key in place of another one, on the same terms and limits; the old one expires."""
    store = opened()
    overlap_s = parse_duration(overlap, "--overlap")
    record, full_key = store.keys.rotate(key_id, overlap_s=overlap_s)
    keep_admin_key(resolve_settings(), replaced=key_id, full_key=full_key)
    wait_for_gateways(store)
    _emit_new(record, full_key, as_json=as_json)


@app.command()
def revoke(key_id: str, as_json: JsonFlag = False) -> None:
    """Revoke a key by its id; no gateway accepts it when this returns."""
    store = opened()
    record = store.keys.revoke(key_id)
    wait_for_gateways(store)
    emit(
        _public(record),
        as_json=as_json,
        render=lambda console: console.print(f"revoked {record.id} ({record.name})"),
    )
