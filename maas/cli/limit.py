"""``maas limit``: how much an organisation, a project, a key or a model's users may use."""

from dataclasses import asdict
from decimal import Decimal, InvalidOperation
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from maas.bootstrap import Store
from maas.cli.output import JsonFlag, emit
from maas.cli.tenants import OrgOption, find_project, opened, wait_for_gateways
from maas.core.errors import ConfigError
from maas.store.limits import COUNTS, LimitKey
from maas.store.organizations import DEFAULT
from maas.store.records import LimitScope

app = typer.Typer(help="Limits and budgets: set, list.", no_args_is_help=True)

_NONE = "none"
_ScopeArgument = Annotated[LimitScope, typer.Argument(help="What is limited.")]
_NamedArgument = Annotated[str, typer.Argument(help="Its id or name; a model's id.")]
_ModelOption = Annotated[str | None, typer.Option(help="Only requests for this model.")]


def _id_of(store: Store, scope: LimitScope, named: str, org: str) -> str:
    if scope is LimitScope.ORGANIZATION:
        return store.tenancy.organizations.find(named).id
    return find_project(store, named, org).id if scope is LimitScope.PROJECT else named


def _count(text: str, option: str) -> int | None:
    if text == _NONE:
        return None
    if not text.isdecimal():
        raise ConfigError(f"{option} {text!r}: want a whole number, or none")
    return int(text)


def _money(text: str) -> Decimal | None:
    try:
        return None if text == _NONE else Decimal(text)
    except InvalidOperation as error:
        raise ConfigError(f"--monthly-budget {text!r}: want an amount, or none") from error


@app.command("set")
def set_limit(  # noqa: PLR0913 - a command line has as many options as it has
    scope: _ScopeArgument,
    named: _NamedArgument,
    model: _ModelOption = None,
    org: OrgOption = DEFAULT,
    requests_per_minute: Annotated[str | None, typer.Option()] = None,
    tokens_per_minute: Annotated[str | None, typer.Option()] = None,
    concurrent_requests: Annotated[str | None, typer.Option()] = None,
    tokens_per_day: Annotated[str | None, typer.Option()] = None,
    monthly_budget: Annotated[str | None, typer.Option(help="In the prices' currency.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Change numbers of a limit; ``none`` takes one away, what is not given stays."""
    given = {
        "requests_per_minute": requests_per_minute,
        "tokens_per_minute": tokens_per_minute,
        "concurrent_requests": concurrent_requests,
        "tokens_per_day": tokens_per_day,
    }
    changes: dict[str, Any] = {
        name: _count(text, f"--{name.replace('_', '-')}")
        for name, text in given.items()
        if text is not None
    }
    if monthly_budget is not None:
        changes["monthly_budget"] = _money(monthly_budget)
    if not changes:
        raise ConfigError("give at least one number, such as --requests-per-minute 60")
    store = opened()
    limit = store.tenancy.limits.set(
        LimitKey(scope, _id_of(store, scope, named, org), model), **changes
    )
    wait_for_gateways(store)
    emit(asdict(limit), as_json=as_json, render=lambda console: console.print("done"))


@app.command("list")
def list_limits(as_json: JsonFlag = False) -> None:
    """List all limits."""
    found = opened().tenancy.limits.list()

    def render(console: Console) -> None:
        table = Table("scope", "of", "model", *(n.replace("_", " ") for n in COUNTS), "budget")
        for item in found:
            numbers = [getattr(item, name) for name in (*COUNTS, "monthly_budget")]
            table.add_row(item.scope, item.scope_id, item.model or "all", *map(_shown, numbers))
        console.print(table)

    emit({"limits": [asdict(item) for item in found]}, as_json=as_json, render=render)


def _shown(number: int | Decimal | None) -> str:
    return "" if number is None else f"{Decimal(number).normalize():f}"
