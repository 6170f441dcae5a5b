"""``maas audit``: the log of every change, exported and checked."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from maas.cli.output import JsonFlag, emit
from maas.cli.tenants import opened
from maas.core.errors import ConfigError
from maas.store.audit_log import AuditFilter, verify_lines

app = typer.Typer(help="The audit log: export, verify.", no_args_is_help=True)


@app.command()
def export(
    out: Annotated[Path | None, typer.Option(help="File to write; default: print.")] = None,
    org: Annotated[
        str | None, typer.Option(help="Only of this organisation; cannot be verified later.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Write the log as lines of JSON, oldest first."""
    tenancy = opened().tenancy
    organization_id = None if org is None else tenancy.organizations.find(org).id
    lines = tenancy.audit.export(AuditFilter(organization_id=organization_id))
    if out is None:
        sys.stdout.writelines(f"{line}\n" for line in lines)
        return
    try:
        with out.open("w", encoding="utf-8") as file:
            num_entries = sum(1 for line in lines if file.write(line + "\n"))
    except OSError as error:
        raise ConfigError(f"{out}: cannot be written: {error.strerror}") from error
    emit(
        {"file": str(out), "num_entries": num_entries},
        as_json=as_json,
        render=lambda console: console.print(f"{num_entries} entries in {out}"),
    )


@app.command()
def verify(
    file: Annotated[Path | None, typer.Option(help="An export; default: the store.")] = None,
    expect: Annotated[
        str | None, typer.Option(help="Hash of an entry that must still be in the log.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Check that no entry was changed, removed or moved; the exit code is 1 if one was."""
    if file is None:
        log = opened().tenancy.audit
        verdict, known = log.verify(), expect is None or log.holds(expect)
    else:
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{file}: cannot be read: {error}") from error
        verdict = verify_lines(lines)
        known = expect is None or any(f'"hash": "{expect}"' in line for line in lines)
    missing = () if known else (f"no entry has the hash {expect}: the log is not the one it was",)
    faults = (*verdict.faults, *missing)

    def render(console: Console) -> None:
        for fault in faults:
            console.print(fault, style="bold red")
        if not faults:
            console.print(f"whole: {verdict.num_entries} entries\nhead   {verdict.head_hash}")

    result = {**asdict(verdict), "is_whole": not faults, "faults": list(faults)}
    emit(result, as_json=as_json, render=render)
    if faults:
        raise typer.Exit(code=1)
