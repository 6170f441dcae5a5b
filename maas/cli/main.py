"""The ``maas`` command: one module a group of commands, put together here."""

import sys

import typer

from maas.cli import deploy, key, model
from maas.cli.chat import chat
from maas.cli.doctor import doctor
from maas.cli.output import fail
from maas.cli.processes import controller, gateway
from maas.cli.status import status
from maas.cli.up import up
from maas.core.errors import MaasError

app = typer.Typer(
    name="maas",
    help="Run open-weight models as a service, on your own hardware.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def root() -> None:
    """Run open-weight models as a service, on your own hardware."""


app.command()(up)
app.command()(status)
app.command()(doctor)
app.command()(chat)
app.command()(gateway)
app.command()(controller)
app.add_typer(deploy.app, name="deploy")
app.add_typer(key.app, name="key")
app.add_typer(model.app, name="model")


def main() -> None:
    """Run the command line: an error of ours is one clear line and exit code 1."""
    try:
        app()
    except MaasError as error:
        sys.exit(fail(error).exit_code)
