"""What the commands have in common: where bundles are, and what is printed."""

import asyncio
import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from maas.core.errors import ConfigError, EngineError, MaasError, NotFound
from maas.edge.runtime.bundle.signing import key_id_of
from maas.edge.runtime.engine.options import EngineOptions
from maas.edge.runtime.fleet.trial import trial_options, try_apart
from maas.edge.runtime.memory import check_memory
from maas.edge.runtime.shelf.shelf import Held, Pulled, Report, Shelf, verify_folder
from maas.edge.runtime.shelf.sources import FileSource, Source

HOME_VARIABLE = "MAAS_EDGE_HOME"
JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON object, for scripts.")]


def open_shelf() -> Shelf:
    """Return this device's shelf."""
    home = os.environ.get(HOME_VARIABLE)
    return Shelf(Path(home) if home else Path.home() / ".maas-edge")


def emit(result: Mapping[str, Any], *, as_json: bool, render: Callable[[Console], object]) -> None:
    """Print a command's result: one JSON object, or what a person reads."""
    if as_json:
        sys.stdout.write(json.dumps(result, indent=2, default=str) + "\n")
    else:
        render(Console(markup=False))


def warn(text: str) -> None:
    """Say something that is not the result."""
    Console(stderr=True, highlight=False, markup=False).print(text, soft_wrap=True)


def fail(error: MaasError) -> int:
    """Print one clear line; return the exit code."""
    Console(stderr=True, highlight=False).print(
        f"[bold red]maas-edge: {error.code}:[/] {escape(error.message)}", soft_wrap=True
    )
    return 1


def take(shelf: Shelf, source: Source, report: Report = lambda _done, _all: None) -> Pulled:
    """Fetch a bundle and use it, once it answered in a process of its own.

    Raises:
        BundleRefused: It is not what its maker signed.
        DoesNotFit: There is no memory for it; the one in use stays.
        EngineError: It does not work here; the one in use stays.
    """
    before = shelf.current()

    def try_out(pulled: Pulled) -> None:
        held = pulled.held
        if before is not None and before.manifest.bundle_id == held.manifest.bundle_id:
            return
        check_memory(held.manifest, trial_options())
        try:
            asyncio.run(try_apart(held.folder, EngineOptions()))
        except EngineError as error:
            raise EngineError(
                f"{held.manifest.name} ({held.manifest.bundle_id[:16]}) does not work here, and is "
                f"not used: {error.message}"
            ) from error

    return shelf.pull(source, report, on_fetched=try_out)


def say_new_key(pulled: Pulled) -> None:
    """Say whose bundles this device trusts from now on."""
    if pulled.new_key is not None:
        warn(
            f"the first bundle here is signed by key {key_id_of(pulled.new_key)}: bundles of other "
            "keys are refused from now on (maas-edge trust adds one)"
        )


def locate(source: str | None) -> Held:
    """Return the verified folder of what a user names.

    Args:
        source: A bundle's file, which is taken onto the shelf and tried; an unpacked folder; none:
            the bundle in use.

    Raises:
        BundleRefused: It is not what its maker signed.
        DoesNotFit: There is no memory to try it.
        EngineError: It does not work here.
        NotFound: There is no such thing.
    """
    shelf = open_shelf()
    if source is None:
        held = shelf.current()
        if held is None:
            raise NotFound("no bundle is in use here: maas-edge pull SOURCE, or name a file")
        shelf.verify(held)
        return held
    path = Path(source)
    if path.is_dir():
        return Held(path, verify_folder(path, shelf.trusted() or None))
    if not path.is_file():
        raise NotFound(f"{source}: no such file")
    pulled = take(shelf, FileSource(path))
    say_new_key(pulled)
    return pulled.held


def check_positive(value: int, *, flag: str) -> None:
    """Check a number on the command line.

    Raises:
        ConfigError: It is below zero.
    """
    if value < 0:
        raise ConfigError(f"{flag} {value}: want 0 or more")
