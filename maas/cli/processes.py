"""``maas gateway`` and ``maas controller``: more of either on one store, in the foreground."""

from typing import Annotated

import typer

from maas.bootstrap import resolve_settings
from maas.bootstrap.alone import become_controller, become_gateway


def gateway(
    host: Annotated[str | None, typer.Option(help="Address it listens on.")] = None,
    port: Annotated[int | None, typer.Option(help="Its port.")] = None,
    metrics_port: Annotated[int | None, typer.Option(help="Port of its metrics.")] = None,
) -> None:
    """Run one more gateway on the store of MAAS_DATABASE_URL."""
    flags = {"host": host, "port": port, "metrics_port": metrics_port}
    become_gateway(resolve_settings(flags))


def controller() -> None:
    """Run one more controller; it takes over when the one that leads is gone."""
    become_controller(resolve_settings())
