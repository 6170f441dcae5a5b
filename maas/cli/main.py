"""The ``maas`` command: one module a group of commands, put together here."""

import sys

import typer

from maas.cli import (
    audit,
    bundle,
    data,
    deploy,
    device,
    exports,
    job,
    key,
    limit,
    model,
    org,
    price,
    project,
    webhook,
)
from maas.cli.chat import chat
from maas.cli.doctor import doctor
from maas.cli.export import export
from maas.cli.output import fail
from maas.cli.processes import controller, gateway
from maas.cli.status import status
from maas.cli.tenants import person
from maas.cli.up import up
from maas.cli.usage import usage
from maas.core.errors import MaasError
from maas.store.actor import act_as

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
app.command()(usage)
app.command()(export)
app.add_typer(audit.app, name="audit")
app.add_typer(bundle.app, name="bundle")
app.add_typer(data.app, name="data")
app.add_typer(deploy.app, name="deploy")
app.add_typer(device.app, name="device")
app.add_typer(exports.app, name="exports")
app.add_typer(job.app, name="job")
app.add_typer(key.app, name="key")
app.add_typer(limit.app, name="limit")
app.add_typer(model.app, name="model")
app.add_typer(org.app, name="org")
app.add_typer(price.app, name="price")
app.add_typer(project.app, name="project")
app.add_typer(webhook.app, name="webhook")


def main() -> None:
    """Run the command line: an error of ours is one clear line and exit code 1."""
    act_as(person())
    try:
        app()
    except MaasError as error:
        sys.exit(fail(error).exit_code)
