"""Lists that come page by page: the option that goes on, and the line that says there is more."""

from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

AfterOption = Annotated[
    str | None, typer.Option("--after", help="Go on after this one: last_id of the page before.")
]


def print_page(console: Console, table: Table, page: dict[str, Any]) -> None:
    """Print a page, and how to see the next one where there is one."""
    console.print(table)
    if page["has_more"]:
        console.print(f"there are more: --after {page['last_id']}", soft_wrap=True, highlight=False)
