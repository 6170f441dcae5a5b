"""What commands about tenants share: the store, whose things are meant, waiting for gateways."""

import getpass
import os
import time
from typing import Annotated

import typer
from rich.console import Console

from maas.bootstrap import Store, open_store, resolve_settings
from maas.store.actor import Actor
from maas.store.organizations import DEFAULT
from maas.store.records import Project
from maas.store.state import ensure_project

_GATEWAYS_TIMEOUT_S = 2.0

OrgOption = Annotated[str, typer.Option("--org", help="Organisation, by id or name.")]
ProjectOption = Annotated[str, typer.Option("--project", help="Project, by id or name.")]


def person() -> Actor:
    """Return who runs this command, for the audit log."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):
        name = f"uid {os.getuid()}"
    return Actor("cli", name)


def opened() -> Store:
    """Open the store; the organisation and project ``default`` are there afterwards."""
    store = open_store(resolve_settings())
    ensure_project(store.database, store.clock)
    return store


def find_project(store: Store, named: str, org: str = DEFAULT) -> Project:
    """Return a project by name in its organisation, or by id wherever it is.

    Raises:
        NotFound: There is none.
    """
    if named.startswith("proj-"):
        return store.tenancy.projects.get(named)
    return store.tenancy.projects.find(store.tenancy.organizations.find(org).id, named)


def wait_for_gateways(store: Store) -> None:
    """Return when every running gateway knows of the change, so that scripts can go on.

    One that stands still is not waited for forever; that is said.
    """
    deadline = time.monotonic() + _GATEWAYS_TIMEOUT_S
    while not store.leases.are_gateways_current():
        if time.monotonic() >= deadline:
            Console(stderr=True, highlight=False).print(
                "maas: a gateway has not seen this change yet; its log may say why", soft_wrap=True
            )
            return
        time.sleep(0.02)
