"""``maas usage``: what was used and what it cost, as a table, as CSV or as JSON."""

import csv
import re
import sys
import time
from decimal import Decimal
from enum import StrEnum
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from maas.cli.output import JsonFlag, emit
from maas.cli.tenants import OrgOption, find_project, opened
from maas.core.errors import ConfigError
from maas.ledger.usage import COUNTS, GROUPS, WIDTHS, UsageQuery, UsageReader, UsageRow
from maas.store.organizations import DEFAULT

_UNITS = {"m": 60, "h": 3600, "d": 86_400}
_DRAWN = ("num_requests", "input_tokens", "cached_tokens", "output_tokens", "training_tokens")
_LONGEST_S = 3650 * 86_400


class Width(StrEnum):
    """Width of a bucket."""

    MINUTE = "1m"
    HOUR = "1h"
    DAY = "1d"


def _seconds(text: str) -> int:
    match = re.fullmatch(r"(\d+)([mhd])", text)
    if match is None:
        raise ConfigError(f"--since {text!r}: want a number and m, h or d, such as 7d")
    seconds = int(match[1]) * _UNITS[match[2]]
    if not 0 < seconds <= _LONGEST_S:
        raise ConfigError(f"--since {text!r}: want more than nothing and at most 3650d")
    return seconds


def _groups(text: str) -> tuple[str, ...]:
    names = tuple(name for name in text.split(",") if name)
    for name in names:
        if name not in GROUPS:
            raise ConfigError(f"--group-by {name!r}: {', '.join(sorted(GROUPS))} are offered")
    return names


def usage(  # noqa: PLR0913 - a command line has as many options as it has
    since: Annotated[str, typer.Option(help="How far back: 30m, 24h, 7d.")] = "7d",
    width: Annotated[Width, typer.Option(help="Width of a bucket.")] = Width.DAY,
    group_by: Annotated[
        str, typer.Option(help=f"Columns, with commas: {', '.join(sorted(GROUPS))}.")
    ] = "project_id,model",
    project: Annotated[str | None, typer.Option(help="Only this project.")] = None,
    org: OrgOption = DEFAULT,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Say what was used and what it cost. Times are UTC."""
    groups = _groups(group_by)
    end = int(time.time()) + 1
    store = opened()
    if project is not None:
        where = {"project_id": [find_project(store, project, org).id]}
    else:
        where = {"organization_id": [store.tenancy.organizations.find(org).id]}
    query = UsageQuery(end - _seconds(since), end, WIDTHS[width.value], where, groups)
    rows = UsageReader(store.database, store.clock).read(query)
    if as_csv:
        _write_csv(rows, groups)
    else:
        emit(
            {"usage": [_plain(row) for row in rows], "total": _totals(rows)},
            as_json=as_json,
            render=lambda console: _draw(console, rows, groups),
        )


def _plain(row: UsageRow) -> dict[str, Any]:
    return {
        "start_time": row.start,
        **row.groups,
        **row.counts,
        "amount": f"{row.amount:f}",
        "currency": row.currency,
    }


def _totals(rows: list[UsageRow]) -> dict[str, str]:
    totals: dict[str, Decimal] = {}
    for row in rows:
        totals[row.currency] = totals.get(row.currency, Decimal(0)) + row.amount
    return {currency: f"{amount:f}" for currency, amount in totals.items()}


def _write_csv(rows: list[UsageRow], groups: tuple[str, ...]) -> None:
    writer = csv.DictWriter(
        sys.stdout, ["start_time", *groups, *COUNTS, "amount", "currency"], lineterminator="\n"
    )
    writer.writeheader()
    writer.writerows(_plain(row) for row in rows)


def _draw(console: Console, rows: list[UsageRow], groups: tuple[str, ...]) -> None:
    table = Table(
        "from (UTC)", *groups, "requests", "input", "cached", "output", "trained", "exports", "cost"
    )
    for row in rows:
        counts = row.counts
        table.add_row(
            time.strftime("%Y-%m-%d %H:%M", time.gmtime(row.start)),
            *row.groups.values(),
            *(f"{counts[name]:,}" for name in _DRAWN),
            f"{counts['export_milliseconds'] / 1000:,.0f} s",
            f"{row.amount:f} {row.currency}",
        )
    console.print(table)
    for currency, amount in _totals(rows).items():
        console.print(f"total {amount} {currency}")
