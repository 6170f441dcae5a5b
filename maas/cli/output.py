"""What commands print: a table for people, one JSON object for scripts (``--json``)."""

import json
import sys
import time
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from maas.core.errors import MaasError

JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON object, for scripts.")]


def emit(result: Mapping[str, Any], *, as_json: bool, render: Callable[[Console], object]) -> None:
    """Print a command's result.

    Args:
        result: What ``--json`` prints: one object.
        as_json: Whether ``--json`` was given.
        render: Draws the same result for a person.
    """
    if as_json:
        sys.stdout.write(json.dumps(result, indent=2, default=str) + "\n")
    else:
        # Names are tenants' own: nothing in them is markup.
        render(Console(markup=False))


def moment(seconds: int | None) -> str:
    """Return epoch seconds as this machine's people read them; nothing for none."""
    return "" if seconds is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def fail(error: MaasError) -> typer.Exit:
    """Print one clear line and return the exit to raise."""
    Console(stderr=True, highlight=False).print(
        f"[bold red]maas: {error.code}:[/] {escape(error.message)}", soft_wrap=True
    )
    return typer.Exit(code=1)
