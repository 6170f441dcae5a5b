"""``maas webhook``: who is told, signed, when a budget is used up."""

from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from maas.bootstrap import Store, resolve_settings
from maas.cli.output import JsonFlag, emit
from maas.cli.tenants import OrgOption, opened
from maas.store.organizations import DEFAULT
from maas.store.secrets import SecretBox
from maas.store.webhooks import WebhookRepository

app = typer.Typer(help="Webhooks of budget alerts: create, list, delete.", no_args_is_help=True)


def _webhooks(store: Store) -> WebhookRepository:
    return WebhookRepository(store.database, store.clock, SecretBox(resolve_settings().home).seal)


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="What it is for.")],
    url: Annotated[str, typer.Argument(help="Address that events are sent to.")],
    org: OrgOption = DEFAULT,
    as_json: JsonFlag = False,
) -> None:
    """Make a webhook. Its signing secret is shown once."""
    store = opened()
    organization = store.tenancy.organizations.find(org)
    made, secret = _webhooks(store).create(organization.id, name=name, url=url)

    def render(console: Console) -> None:
        console.print(
            f"secret   {secret}\nid       {made.id}\nThe secret is not shown again.",
            soft_wrap=True,
            highlight=False,
        )

    emit({**asdict(made), "secret": secret}, as_json=as_json, render=render)


@app.command("list")
def list_webhooks(org: OrgOption = DEFAULT, as_json: JsonFlag = False) -> None:
    """List an organisation's webhooks, without their secrets."""
    store = opened()
    found = _webhooks(store).list(store.tenancy.organizations.find(org).id)

    def render(console: Console) -> None:
        table = Table("id", "name", "url", "events")
        for item in found:
            table.add_row(item.id, item.name, item.url, ", ".join(item.events))
        console.print(table)

    emit({"webhooks": [asdict(item) for item in found]}, as_json=as_json, render=render)


@app.command()
def delete(webhook_id: str, org: OrgOption = DEFAULT, as_json: JsonFlag = False) -> None:
    """Remove a webhook; what is on its way to it is not sent any more."""
    store = opened()
    _webhooks(store).delete(store.tenancy.organizations.find(org).id, webhook_id)
    emit(
        {"id": webhook_id, "deleted": True},
        as_json=as_json,
        render=lambda console: console.print(f"removed {webhook_id}"),
    )
