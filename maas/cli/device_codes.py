"""Enrolment codes: ``maas device enrol-code`` makes one, ``maas device code`` has the others."""

import time
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from maas.cli.client import KeyOption, UrlOption, client_of
from maas.cli.durations import parse_duration
from maas.cli.metadata import MetadataOption, parse_metadata
from maas.cli.output import JsonFlag, emit, moment
from maas.cli.pages import AfterOption, print_page

app = typer.Typer(help="Enrolment codes: list, delete.", no_args_is_help=True)
_CODES = "/devices/enrolment_codes"


def enrol_code(  # noqa: PLR0913 - its options
    group: Annotated[str, typer.Option(help="Group that the device comes into.")] = "default",
    name: Annotated[str | None, typer.Option(help="What the device will be called.")] = None,
    expires_in: Annotated[str, typer.Option(help="Such as 30m or 7d; at most 30d.")] = "1h",
    metadata: MetadataOption = None,
    url: UrlOption = None,
    key: KeyOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Make a code that enrols one device. It is shown once."""
    body: dict[str, Any] = {
        "group": group,
        "name": name,
        "expires_in_s": int(parse_duration(expires_in, "--expires-in")),
        "metadata": parse_metadata(metadata),
    }
    made = client_of(url, key).post(_CODES, body)

    def render(console: Console) -> None:
        until = moment(made["expires_at"])
        console.print(f"code    {made['code']}\nuntil   {until}\nIt is not shown again.")

    emit(made, as_json=as_json, render=render)


@app.command("list")
def list_codes(
    limit: Annotated[int, typer.Option(min=1, max=100, help="Most codes.")] = 20,
    after: AfterOption = None,
    url: UrlOption = None,
    key: KeyOption = None,
    as_json: JsonFlag = False,
) -> None:
    """List enrolment codes, newest first; never the codes themselves."""
    page = client_of(url, key).get(_CODES, limit=limit, after=after)

    def render(console: Console) -> None:
        table = Table("id", "group", "name", "until", "state")
        for item in page["data"]:
            until = moment(item["expires_at"])
            table.add_row(item["id"], item["group"], item["name"] or "", until, _state_of(item))
        print_page(console, table, page)

    emit(page, as_json=as_json, render=render)


@app.command()
def delete(
    code_id: str, url: UrlOption = None, key: KeyOption = None, as_json: JsonFlag = False
) -> None:
    """Withdraw a code: it makes no device any more. One that it made stays."""
    gone = client_of(url, key).delete(f"{_CODES}/{code_id}")
    emit(gone, as_json=as_json, render=lambda console: console.print(f"{code_id} is deleted"))


def _state_of(code: dict[str, Any]) -> str:
    if code["used_at"] is not None:
        return f"made {code['device_id']}"
    return "expired" if code["expires_at"] <= time.time() else "open"
