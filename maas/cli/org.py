"""``maas org``: organisations and the people in them."""

from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from maas.cli.output import JsonFlag, emit
from maas.cli.tenants import OrgOption, find_project, opened, wait_for_gateways
from maas.store.organizations import DEFAULT
from maas.store.pages import Window
from maas.store.records import Role

app = typer.Typer(help="Organisations: create, list, archive; their people.", no_args_is_help=True)
_EVERYBODY = 10_000


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="Of the organisation.")], as_json: JsonFlag = False
) -> None:
    """Make an organisation with its first project, ``default``."""
    store = opened()
    made = store.tenancy.organizations.create(name)
    project = store.tenancy.projects.default_of(made.id)
    wait_for_gateways(store)
    emit(
        {**asdict(made), "default_project_id": project.id},
        as_json=as_json,
        render=lambda console: console.print(f"{made.id}  {made.name}; its project: {project.id}"),
    )


@app.command("list")
def list_organizations(as_json: JsonFlag = False) -> None:
    """List the organisations, archived ones too."""
    found = opened().tenancy.organizations.list()

    def render(console: Console) -> None:
        table = Table("id", "name", "state")
        for item in found:
            table.add_row(item.id, item.name, "archived" if item.archived_at else "active")
        console.print(table)

    emit({"organizations": [asdict(item) for item in found]}, as_json=as_json, render=render)


@app.command()
def archive(org: str, as_json: JsonFlag = False) -> None:
    """Archive an organisation: its keys are refused when this returns."""
    store = opened()
    organizations = store.tenancy.organizations
    gone = organizations.archive(organizations.find(org).id)
    wait_for_gateways(store)
    emit(
        asdict(gone),
        as_json=as_json,
        render=lambda console: console.print(f"archived {gone.id} ({gone.name})"),
    )


@app.command("add-user")
def add_user(
    email: str,
    role: Annotated[Role, typer.Option(help="In the organisation.")] = Role.DEVELOPER,
    name: Annotated[str | None, typer.Option(help="Default: the address.")] = None,
    project: Annotated[str | None, typer.Option(help="Put the user into it, too.")] = None,
    org: OrgOption = DEFAULT,
    as_json: JsonFlag = False,
) -> None:
    """Add a person to an organisation; with --project, with the same role there."""
    store = opened()
    users = store.tenancy.users
    with store.database.together():
        organization = store.tenancy.organizations.find(org)
        made = users.create(organization.id, email=email, name=name or email, role=role)
        if project is not None:
            users.add_member(find_project(store, project, org).id, made.id, role)
    wait_for_gateways(store)
    emit(
        asdict(made),
        as_json=as_json,
        render=lambda console: console.print(f"{made.id}  {made.email}  {made.role}"),
    )


@app.command()
def users(org: OrgOption = DEFAULT, as_json: JsonFlag = False) -> None:
    """List the people of an organisation."""
    tenancy = opened().tenancy
    found = tenancy.users.list(tenancy.organizations.find(org).id, Window(limit=_EVERYBODY)).items

    def render(console: Console) -> None:
        table = Table("id", "address", "name", "role")
        for item in found:
            table.add_row(item.id, item.email, item.name, item.role)
        console.print(table)

    emit({"users": [asdict(item) for item in found]}, as_json=as_json, render=render)


@app.command("set-role")
def set_role(
    email: str,
    role: Annotated[Role, typer.Argument(help="In the organisation.")],
    org: OrgOption = DEFAULT,
    as_json: JsonFlag = False,
) -> None:
    """Change a person's role in an organisation; the person's keys follow at once."""
    store = opened()
    organization, users = store.tenancy.organizations.find(org), store.tenancy.users
    changed = users.modify(organization.id, users.find_by_email(organization.id, email).id, role)
    wait_for_gateways(store)
    emit(
        asdict(changed),
        as_json=as_json,
        render=lambda console: console.print(f"{changed.email}  {changed.role}"),
    )


@app.command("remove-user")
def remove_user(email: str, org: OrgOption = DEFAULT, as_json: JsonFlag = False) -> None:
    """Remove a person and revoke the person's keys."""
    store = opened()
    organization = store.tenancy.organizations.find(org)
    user = store.tenancy.users.find_by_email(organization.id, email)
    store.tenancy.users.delete(organization.id, user.id)
    wait_for_gateways(store)
    emit(
        {"id": user.id, "deleted": True},
        as_json=as_json,
        render=lambda console: console.print(f"removed {user.email}"),
    )
