"""``maas deploy``: say what should run; the controller makes it so."""

import json
import sys
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from maas.bootstrap import open_store, resolve_settings
from maas.bootstrap.deployments import create_deployment, scale_deployment
from maas.cli.output import JsonFlag, emit
from maas.core.errors import ConfigError
from maas.store.records import Deployment

app = typer.Typer(help="Deployments: create, list, scale, delete.", no_args_is_help=True)

_OPTION_HELP = "Engine option NAME=VALUE (max_model_len, dtype ...); repeat for more."


def _public(deployment: Deployment) -> dict[str, Any]:
    """Return what may be shown of a deployment."""
    fields = asdict(deployment)
    fields["options"] = {k: v for k, v in deployment.options.items() if k != "secret"}
    return fields


def _parse_pairs(pairs: list[str]) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for pair in pairs:
        name, separator, value = pair.partition("=")
        if not separator:
            raise ConfigError(f"option {pair!r}: want NAME=VALUE")
        # Values that are JSON objects or lists (capabilities, say) are taken as such.
        options[name.strip()] = json.loads(value) if value[:1] in "{[" and value else value
    return options


@app.command()
def create(  # noqa: PLR0913 - a command line has as many options as it has
    model: Annotated[str, typer.Option(help="Model id, as in: maas model list.")],
    engine: Annotated[str | None, typer.Option(help="vllm, transformers or external.")] = None,
    url: Annotated[str | None, typer.Option(help="Base URL of an external engine.")] = None,
    secret: Annotated[
        bool, typer.Option("--secret", help="Read the external engine's secret from stdin.")
    ] = False,
    min_replicas: Annotated[int, typer.Option("--min")] = 1,
    max_replicas: Annotated[int | None, typer.Option("--max", help="Default: as --min.")] = None,
    quantization: Annotated[
        str | None, typer.Option(help="Form of the weights: a variant of the card, or fp8.")
    ] = None,
    option: Annotated[list[str] | None, typer.Option("-o", help=_OPTION_HELP)] = None,
    engine_arg: Annotated[
        list[str] | None, typer.Option(help="Argument handed to the engine as it is.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Deploy a model. What cannot run here is refused at once, with the reason."""
    options: dict[str, Any] = {**_parse_pairs(option or [])}
    if url is not None:
        options["url"] = url.rstrip("/").removesuffix("/v1")
    if quantization is not None:
        options["quantization"] = quantization
    if engine_arg:
        options["extra_engine_args"] = engine_arg
    settings = resolve_settings()
    deployment = create_deployment(
        settings,
        open_store(settings),
        model_id=model,
        engine=engine or ("external" if url else None),
        options=options,
        secret=sys.stdin.read().strip() if secret else None,
        replicas=(min_replicas, max_replicas or min_replicas),
    )
    emit(
        _public(deployment),
        as_json=as_json,
        render=lambda console: console.print(
            f"{deployment.id}: {deployment.model_id} is on its way"
        ),
    )


@app.command("list")
def list_deployments(as_json: JsonFlag = False) -> None:
    """List the deployments and how they fare."""
    deployments = open_store(resolve_settings()).deployments.list()

    def render(console: Console) -> None:
        table = Table("id", "model", "engine", "replicas", "status", "reason")
        for item in deployments:
            replicas = f"{item.min_replicas}..{item.max_replicas}"
            table.add_row(
                item.id, item.model_id, item.engine, replicas, item.status, item.reason or ""
            )
        console.print(table)

    emit({"deployments": [_public(d) for d in deployments]}, as_json=as_json, render=render)


@app.command()
def scale(
    deployment_id: str,
    min_replicas: Annotated[int, typer.Option("--min", "--replicas")],
    max_replicas: Annotated[int | None, typer.Option("--max", help="Default: as --min.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Change the number of replicas; running ones are not restarted. More must fit here."""
    settings = resolve_settings()
    deployment = scale_deployment(
        settings,
        open_store(settings),
        deployment_id,
        min_replicas=min_replicas,
        max_replicas=max_replicas or min_replicas,
    )
    replicas = f"{deployment.min_replicas}..{deployment.max_replicas} replicas"
    emit(
        _public(deployment),
        as_json=as_json,
        render=lambda console: console.print(f"{deployment.id}: {replicas}"),
    )


@app.command()
def delete(deployment_id: str, as_json: JsonFlag = False) -> None:
    """Drain and stop a deployment."""
    open_store(resolve_settings()).deployments.delete(deployment_id)
    emit(
        {"id": deployment_id, "deleted": True},
        as_json=as_json,
        render=lambda console: console.print(f"{deployment_id}: draining"),
    )
