"""``maas project``: projects of an organisation."""

from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from maas.cli.output import JsonFlag, emit
from maas.cli.tenants import OrgOption, find_project, opened, wait_for_gateways
from maas.store.organizations import DEFAULT
from maas.store.pages import Window
from maas.store.projects import ProjectChange
from maas.store.records import Priority, Project

app = typer.Typer(help="Projects: create, list, modify, archive.", no_args_is_help=True)

_ALL = 100_000
_WEIGHT_HELP = "Share of a saturated deployment, relative to other projects."
_PRIORITY_HELP = "Whose requests go first in front of a saturated deployment."


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="Of the project.")],
    org: OrgOption = DEFAULT,
    weight: Annotated[int, typer.Option(help=_WEIGHT_HELP)] = 1,
    priority: Annotated[Priority, typer.Option(help=_PRIORITY_HELP)] = Priority.ONLINE,
    as_json: JsonFlag = False,
) -> None:
    """Make a project."""
    store = opened()
    organization = store.tenancy.organizations.find(org)
    made = store.tenancy.projects.create(organization.id, name, weight=weight, priority=priority)
    wait_for_gateways(store)
    emit(asdict(made), as_json=as_json, render=lambda console: _render(made, console))


@app.command("list")
def list_projects(
    org: Annotated[str | None, typer.Option(help="Only those of this organisation.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """List projects, archived ones too."""
    tenancy = opened().tenancy
    organization_id = None if org is None else tenancy.organizations.find(org).id
    window = Window(limit=_ALL)
    found = tenancy.projects.list(organization_id, window, with_archived=True).items
    names = {item.id: item.name for item in tenancy.organizations.list()}

    def render(console: Console) -> None:
        table = Table("id", "organisation", "name", "weight", "priority", "state")
        for item in found:
            state = "archived" if item.archived_at else "active"
            organization = names[item.organization_id]
            table.add_row(item.id, organization, item.name, str(item.weight), item.priority, state)
        console.print(table)

    emit({"projects": [asdict(item) for item in found]}, as_json=as_json, render=render)


@app.command()
def modify(
    project: str,
    org: OrgOption = DEFAULT,
    name: Annotated[str | None, typer.Option(help="A new name.")] = None,
    weight: Annotated[int | None, typer.Option(help=_WEIGHT_HELP)] = None,
    priority: Annotated[Priority | None, typer.Option(help=_PRIORITY_HELP)] = None,
    as_json: JsonFlag = False,
) -> None:
    """Change a project's name, weight or priority."""
    store = opened()
    change = ProjectChange(name=name, weight=weight, priority=priority)
    changed = store.tenancy.projects.modify(find_project(store, project, org).id, change)
    wait_for_gateways(store)
    emit(asdict(changed), as_json=as_json, render=lambda console: _render(changed, console))


@app.command()
def archive(project: str, org: OrgOption = DEFAULT, as_json: JsonFlag = False) -> None:
    """Archive a project: its keys are refused when this returns."""
    store = opened()
    gone = store.tenancy.projects.archive(find_project(store, project, org).id)
    wait_for_gateways(store)
    emit(
        asdict(gone),
        as_json=as_json,
        render=lambda console: console.print(f"archived {gone.id} ({gone.name})"),
    )


def _render(project: Project, console: Console) -> None:
    console.print(
        f"{project.id}  {project.name}  weight {project.weight}  priority {project.priority}"
    )
