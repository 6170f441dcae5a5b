"""``maas-edge``: one module a group of commands, put together here."""

import sys

import typer

from maas.core.errors import MaasError
from maas.edge.runtime.cli import bundles, fleet, rehearsal, running
from maas.edge.runtime.cli.shared import fail

app = typer.Typer(
    name="maas-edge",
    help="Run signed model bundles on this device.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def root() -> None:
    """Run signed model bundles on this device."""


app.command("pull")(bundles.pull)
app.command("verify")(bundles.verify)
app.command("list")(bundles.list_bundles)
app.command("rollback")(bundles.rollback)
app.command("trust")(bundles.trust)
app.command("unpack")(bundles.unpack)
app.command("run")(running.run)
app.command("serve")(running.serve_bundle)
app.command("bench")(running.bench)
app.command("rehearse", hidden=True)(rehearsal.rehearse)
app.command("enrol")(fleet.enrol)
app.command("fleet")(fleet.show_fleet)
app.command("leave")(fleet.leave)
app.command("agent")(fleet.agent)


def main() -> None:
    """Run the command line: an error of ours is one clear line and exit code 1."""
    try:
        app()
    except MaasError as error:
        sys.exit(fail(error))
