"""``maas bundle``: what exports made, and devices fetch."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from maas.cli.client import KeyOption, UrlOption, client_of
from maas.cli.exports import download as fetch
from maas.cli.output import JsonFlag, emit, moment
from maas.cli.pages import AfterOption, print_page
from maas.core.errors import ConfigError

app = typer.Typer(help="Bundles: list, show, download, delete; their key.", no_args_is_help=True)
_BUNDLES = "/bundles"


@app.command("list")
def list_bundles(
    limit: Annotated[int, typer.Option(min=1, max=100, help="Most bundles.")] = 20,
    after: AfterOption = None,
    url: UrlOption = None,
    key: KeyOption = None,
    as_json: JsonFlag = False,
) -> None:
    """List bundles, newest first."""
    page = client_of(url, key).get(_BUNDLES, limit=limit, after=after)

    def render(console: Console) -> None:
        table = Table("name", "model", "size", "made", "id")
        # Whole: what takes a bundle takes no beginning of an id.
        table.columns[-1].overflow = "fold"
        for item in page["data"]:
            made = moment(item["created_at"])
            table.add_row(item["name"], item["model"], _size_of(item), made, item["id"])
        print_page(console, table, page)

    emit(page, as_json=as_json, render=render)


@app.command()
def show(
    bundle_id: str, url: UrlOption = None, key: KeyOption = None, as_json: JsonFlag = False
) -> None:
    """Show a bundle; with --json, its manifest too."""
    bundle = client_of(url, key).get(f"{_BUNDLES}/{bundle_id}")
    emit(bundle, as_json=as_json, render=lambda console: _render(console, bundle))


@app.command()
def download(
    bundle_id: str,
    out: Annotated[Path, typer.Option(help="File to write, by custom *.maas.")],
    url: UrlOption = None,
    key: KeyOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Fetch a bundle into a file, going on where it was cut off; every part is checked."""
    if out.is_dir():
        raise ConfigError(f"--out {out}: is a folder; name a file")
    client = client_of(url, key)
    bundle = client.get(f"{_BUNDLES}/{bundle_id}")
    fetch(client.source(f"{_BUNDLES}/{bundle_id}/content"), bundle, out)
    done = {"bundle_id": bundle_id, "path": str(out.absolute()), "size_bytes": out.stat().st_size}
    emit(done, as_json=as_json, render=lambda console: console.print(done["path"], soft_wrap=True))


@app.command("key")
def show_key(url: UrlOption = None, key: KeyOption = None, as_json: JsonFlag = False) -> None:
    """Print the public key of the platform's bundles, as maas-edge trust takes it."""
    found = client_of(url, key).get(f"{_BUNDLES}/signing_key")
    emit(
        found,
        as_json=as_json,
        render=lambda console: console.print(found["public_key"], soft_wrap=True, highlight=False),
    )


@app.command()
def delete(
    bundle_id: str, url: UrlOption = None, key: KeyOption = None, as_json: JsonFlag = False
) -> None:
    """Take a bundle away that no device should run; devices that have it keep it."""
    gone = client_of(url, key).delete(f"{_BUNDLES}/{bundle_id}")
    emit(gone, as_json=as_json, render=lambda console: console.print(f"{bundle_id} is deleted"))


def _size_of(bundle: dict[str, Any]) -> str:
    return f"{bundle['bytes'] / 1e6:.1f} MB"


def _render(console: Console, bundle: dict[str, Any]) -> None:
    manifest = bundle["manifest"]
    receipt, licence = manifest.get("receipt") or {}, manifest.get("licence") or {}
    score = receipt.get("score_percent")
    rows = {
        **{name: bundle[name] for name in ("id", "name", "model")},
        "size": _size_of(bundle),
        "made": moment(bundle["created_at"]),
        "target": manifest.get("target"),
        "precision": manifest.get("precision"),
        "adapters": ", ".join(item["name"] for item in manifest.get("adapters") or ()),
        "licence": licence.get("name"),
        "keeps of the original's score": None if score is None else f"{score:.1f} %",
        "verdict": receipt.get("verdict"),
        "marks": ", ".join(manifest.get("marks") or ()),
    }
    table = Table(show_header=False, box=None)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows.items():
        if value:
            table.add_row(name, str(value))
    console.print(table)
