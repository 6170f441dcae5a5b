"""``maas project``: projects of an organisation, their people and their programs."""

from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from maas.cli.output import JsonFlag, emit
from maas.cli.tenants import OrgOption, find_project, opened, wait_for_gateways
from maas.store.key_terms import KeyTerms
from maas.store.organizations import DEFAULT
from maas.store.pages import Window
from maas.store.projects import ProjectChange
from maas.store.records import Priority, Project, Role

app = typer.Typer(
    help="Projects: create, list, modify, archive; their people and programs.",
    no_args_is_help=True,
)

_ALL = 100_000
_WEIGHT_HELP = "Share of a saturated deployment, relative to other projects."
_PRIORITY_HELP = "Whose requests go first in front of a saturated deployment."
_ProjectArgument = Annotated[str, typer.Argument(help="Project, by id or name.")]
_RoleOption = Annotated[Role, typer.Option(help="In the project.")]


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


@app.command("set-user")
def set_user(
    project: _ProjectArgument,
    email: str,
    role: _RoleOption = Role.DEVELOPER,
    org: OrgOption = DEFAULT,
    as_json: JsonFlag = False,
) -> None:
    """Give a person of the organisation a role in a project, or another one."""
    store = opened()
    found, users = find_project(store, project, org), store.tenancy.users
    user = users.find_by_email(found.organization_id, email)
    with store.database.together():
        members = users.list_members(found.id, Window(limit=_ALL)).items
        is_in = any(member.id == user.id for member, _ in members)
        put = users.modify_member if is_in else users.add_member
        member = put(found.id, user.id, role)
    wait_for_gateways(store)
    emit(
        {**asdict(member), "email": user.email},
        as_json=as_json,
        render=lambda console: console.print(f"{user.email}  {member.role}  in {found.name}"),
    )


@app.command("remove-user")
def remove_user(
    project: _ProjectArgument, email: str, org: OrgOption = DEFAULT, as_json: JsonFlag = False
) -> None:
    """Take a person out of a project and revoke the person's keys of it."""
    store = opened()
    found, users = find_project(store, project, org), store.tenancy.users
    user = users.find_by_email(found.organization_id, email)
    users.remove_member(found.id, user.id)
    wait_for_gateways(store)
    emit(
        {"id": user.id, "deleted": True},
        as_json=as_json,
        render=lambda console: console.print(f"removed {user.email} from {found.name}"),
    )


@app.command("add-account")
def add_account(
    project: _ProjectArgument,
    name: Annotated[str, typer.Argument(help="Of the service account.")],
    role: _RoleOption = Role.DEVELOPER,
    org: OrgOption = DEFAULT,
    as_json: JsonFlag = False,
) -> None:
    """Make a service account and its first key, which is shown once."""
    store = opened()
    found = find_project(store, project, org)
    with store.database.together():
        made = store.tenancy.service_accounts.create(found.id, name=name, role=role)
        terms = KeyTerms(scopes=(), service_account_id=made.id)
        key, value = store.keys.create(project_id=found.id, name=name, terms=terms)
    wait_for_gateways(store)
    emit(
        {**asdict(made), "key": value, "key_id": key.id},
        as_json=as_json,
        render=lambda console: console.print(
            f"key   {value}\nid    {made.id}\nThe key is not shown again.", soft_wrap=True
        ),
    )


@app.command()
def accounts(
    project: _ProjectArgument, org: OrgOption = DEFAULT, as_json: JsonFlag = False
) -> None:
    """List a project's service accounts."""
    store = opened()
    found = find_project(store, project, org)
    listed = store.tenancy.service_accounts.list(found.id, Window(limit=_ALL)).items

    def render(console: Console) -> None:
        table = Table("id", "name", "role")
        for item in listed:
            table.add_row(item.id, item.name, item.role)
        console.print(table)

    result = {"service_accounts": [asdict(item) for item in listed]}
    emit(result, as_json=as_json, render=render)


@app.command("remove-account")
def remove_account(
    project: _ProjectArgument, account_id: str, org: OrgOption = DEFAULT, as_json: JsonFlag = False
) -> None:
    """Remove a service account and revoke its keys."""
    store = opened()
    store.tenancy.service_accounts.delete(find_project(store, project, org).id, account_id)
    wait_for_gateways(store)
    emit(
        {"id": account_id, "deleted": True},
        as_json=as_json,
        render=lambda console: console.print(f"removed {account_id}"),
    )


def _render(project: Project, console: Console) -> None:
    console.print(
        f"{project.id}  {project.name}  weight {project.weight}  priority {project.priority}"
    )
