"""``maas-edge pull|verify|list|rollback|trust|unpack``: bundles, without running them."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, TextColumn, TransferSpeedColumn
from rich.progress import Progress as Bar
from rich.table import Table

from maas.core.errors import NotFound
from maas.edge.runtime.bundle.archive import unpack as unpack_bundle
from maas.edge.runtime.bundle.archive import verify as verify_bundle
from maas.edge.runtime.bundle.manifest import Manifest
from maas.edge.runtime.bundle.signing import key_id_of
from maas.edge.runtime.cli.shared import JsonFlag, emit, open_shelf, say_new_key, take
from maas.edge.runtime.shelf.shelf import verify_folder
from maas.edge.runtime.shelf.sources import source_of


def pull(
    source: Annotated[str, typer.Argument(help="A bundle's file, or its URL.")],
    key: Annotated[
        str | None, typer.Option(envvar="MAAS_EDGE_KEY", help="Bearer key for the URL.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Fetch a bundle, check and try it, and use it; only parts that changed are fetched."""
    columns = (TextColumn("fetching"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Bar(*columns, console=Console(stderr=True), disable=as_json) as bar:
        task = bar.add_task("", total=None)
        pulled = take(
            open_shelf(),
            source_of(source, key),
            lambda done, total: bar.update(task, completed=done, total=total),
        )
    say_new_key(pulled)
    manifest = pulled.held.manifest
    shown = {
        **_facts(manifest),
        "folder": str(pulled.held.folder),
        "fetched_bytes": pulled.fetched_bytes,
        "reused_bytes": pulled.reused_bytes,
    }
    line = (
        f"in use: {manifest.name} ({manifest.bundle_id[:16]}); fetched "
        f"{pulled.fetched_bytes / 1e6:.1f} MB, {pulled.reused_bytes / 1e6:.1f} MB were here"
    )
    emit(shown, as_json=as_json, render=lambda console: console.print(line, soft_wrap=True))


def verify(
    source: Annotated[str | None, typer.Argument(help="File or folder; none: in use.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Check a bundle's signature and every byte; nothing is changed."""
    shelf = open_shelf()
    trusted = shelf.trusted() or None
    if source is None:
        held = shelf.current()
        if held is None:
            raise NotFound("no bundle is in use here")
        manifest = verify_folder(held.folder, trusted)
    elif Path(source).is_dir():
        manifest = verify_folder(Path(source), trusted)
    elif Path(source).is_file():
        manifest = verify_bundle(Path(source), trusted).manifest
    else:
        raise NotFound(f"{source}: no such file")
    whose = "by a trusted key" if trusted else "its key is not trusted yet: none is"
    emit(
        {**_facts(manifest), "is_whole": True, "is_trusted": bool(trusted)},
        as_json=as_json,
        render=lambda console: console.print(
            f"whole: {manifest.name} ({manifest.bundle_id}), {whose}", soft_wrap=True
        ),
    )


def list_bundles(as_json: JsonFlag = False) -> None:
    """List the bundles on this device."""
    shelf = open_shelf()
    current = shelf.current()
    in_use = current.manifest.bundle_id if current else None
    held = shelf.held()
    rows = [{**_facts(item.manifest), "in_use": item.manifest.bundle_id == in_use} for item in held]

    def render(console: Console) -> None:
        table = Table(box=None)
        for name in ("", "bundle", "name", "precision", "size", "score kept"):
            table.add_column(name)
        for item in held:
            manifest = item.manifest
            table.add_row(
                "*" if manifest.bundle_id == in_use else "",
                manifest.bundle_id[:16],
                manifest.name,
                manifest.precision,
                f"{manifest.size_bytes / 1e6:.1f} MB",
                _score(manifest),
            )
        console.print(table)

    emit({"bundles": rows}, as_json=as_json, render=render)


def rollback(as_json: JsonFlag = False) -> None:
    """Use the bundle before again."""
    held = open_shelf().roll_back()
    emit(
        _facts(held.manifest),
        as_json=as_json,
        render=lambda console: console.print(
            f"in use: {held.manifest.name} ({held.manifest.bundle_id[:16]})"
        ),
    )


def trust(
    key: Annotated[str, typer.Argument(help="Public key: hexadecimal, or a file that has it.")],
) -> None:
    """Take bundles of another maker."""
    path = Path(key)
    text = path.read_text(encoding="utf-8").strip() if path.is_file() else key
    open_shelf().trust(text)
    Console().print(f"trusted: {key_id_of(text.strip().lower())}")


def unpack(
    file: Annotated[Path, typer.Argument(help="A bundle's file.", exists=True, dir_okay=False)],
    folder: Annotated[Path, typer.Argument(help="A folder that is not there yet.")],
) -> None:
    """Write a bundle's parts into a folder: what onnxruntime-genai loads in any language."""
    head = unpack_bundle(file, folder, open_shelf().trusted() or None)
    Console(markup=False).print(
        f"{len(head.manifest.parts)} parts of {head.manifest.name} in {folder}", soft_wrap=True
    )


def _score(manifest: Manifest) -> str:
    # The receipt is whatever its maker wrote.
    score = manifest.receipt.get("score_percent")
    return f"{score:.1f} %" if isinstance(score, int | float) and 0 <= score <= 100 else "?"


def _facts(manifest: Manifest) -> dict[str, Any]:
    return {
        "bundle_id": manifest.bundle_id,
        "name": manifest.name,
        "model_id": manifest.model_id,
        "precision": manifest.precision,
        "target": manifest.target,
        "size_bytes": manifest.size_bytes,
        "ram_required_bytes": manifest.ram_required_bytes,
        "licence": manifest.licence,
        "receipt": manifest.receipt,
        "cost_card": manifest.cost_card,
        "adapters": [adapter.name for adapter in manifest.adapters],
        "marks": list(manifest.marks),
    }
