"""``maas device rollout``: a bundle to a channel's devices, stage by stage."""

from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from maas.cli.client import KeyOption, UrlOption, client_of
from maas.cli.durations import parse_duration
from maas.cli.metadata import MetadataOption, parse_metadata
from maas.cli.output import JsonFlag, emit
from maas.cli.pages import AfterOption, print_page
from maas.core.errors import ConfigError

app = typer.Typer(help="Rollouts: start, watch, pause, resume, cancel.", no_args_is_help=True)
_ROLLOUTS = "/devices/rollouts"


@app.command()
def start(  # noqa: PLR0913 - its options
    bundle: Annotated[str, typer.Argument(help="Bundle to roll out.")],
    channel: Annotated[str, typer.Option(help="Channel whose devices get it.")] = "stable",
    stages: Annotated[
        str, typer.Option(help="Percentages, each with a shortest time if wanted: 1:10m,10:1h,100.")
    ] = "1,10,50,100",
    max_failure_percent: Annotated[
        float, typer.Option(min=0, max=100, help="Failures past this share halt it.")
    ] = 5.0,
    min_reports: Annotated[
        int, typer.Option(min=1, help="Failures that it takes at least to halt it.")
    ] = 1,
    metadata: MetadataOption = None,
    url: UrlOption = None,
    key: KeyOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Begin to give a channel's devices a bundle."""
    body = {
        "channel": channel,
        "bundle_id": bundle,
        "stages": [_stage(part) for part in stages.split(",")],
        "max_failure_percent": max_failure_percent,
        "min_reports": min_reports,
        "metadata": parse_metadata(metadata),
    }
    _show(client_of(url, key).post(_ROLLOUTS, body), as_json=as_json)


def _stage(text: str) -> dict[str, float]:
    percent, _, duration = text.strip().partition(":")
    try:
        stage = {"percent": float(percent)}
    except ValueError as error:
        raise ConfigError(f"--stages: {text!r} is no percentage") from error
    if duration:
        stage["min_s"] = parse_duration(duration, "--stages")
    return stage


@app.command("list")
def list_rollouts(
    limit: Annotated[int, typer.Option(min=1, max=100, help="Most rollouts.")] = 20,
    after: AfterOption = None,
    url: UrlOption = None,
    key: KeyOption = None,
    as_json: JsonFlag = False,
) -> None:
    """List rollouts, newest first."""
    page = client_of(url, key).get(_ROLLOUTS, limit=limit, after=after)

    def render(console: Console) -> None:
        table = Table(
            "id", "channel", "bundle", "status", "stage", "succeeded", "failed", "missing"
        )
        for item in page["data"]:
            counts = item["counts"]
            table.add_row(
                item["id"],
                item["channel"],
                item["bundle_id"][:12],
                item["status"],
                _stage_of(item),
                f"{counts['succeeded']} of {counts['eligible']}",
                str(counts["failed"]),
                str(counts["missing"]),
            )
        print_page(console, table, page)

    emit(page, as_json=as_json, render=render)


@app.command()
def show(
    rollout_id: str, url: UrlOption = None, key: KeyOption = None, as_json: JsonFlag = False
) -> None:
    """Show a rollout."""
    _show(client_of(url, key).get(f"{_ROLLOUTS}/{rollout_id}"), as_json=as_json)


@app.command()
def pause(
    rollout_id: str, url: UrlOption = None, key: KeyOption = None, as_json: JsonFlag = False
) -> None:
    """Let no further device take the bundle."""
    _show(client_of(url, key).post(f"{_ROLLOUTS}/{rollout_id}/pause"), as_json=as_json)


@app.command()
def resume(
    rollout_id: str, url: UrlOption = None, key: KeyOption = None, as_json: JsonFlag = False
) -> None:
    """Go on with a rollout that is paused or halted; devices that failed try again."""
    _show(client_of(url, key).post(f"{_ROLLOUTS}/{rollout_id}/resume"), as_json=as_json)


@app.command()
def cancel(
    rollout_id: str, url: UrlOption = None, key: KeyOption = None, as_json: JsonFlag = False
) -> None:
    """End a rollout: every device wants its channel's bundle again."""
    _show(client_of(url, key).post(f"{_ROLLOUTS}/{rollout_id}/cancel"), as_json=as_json)


def _stage_of(rollout: dict[str, Any]) -> str:
    stages = rollout["stages"]
    return f"{rollout['stage'] + 1} of {len(stages)} ({stages[rollout['stage']]['percent']:g} %)"


def _show(rollout: dict[str, Any], *, as_json: bool) -> None:
    def render(console: Console) -> None:
        table = Table(show_header=False, box=None)
        for name in ("id", "channel", "bundle_id", "status", "reason", "attempt"):
            table.add_row(name, str(rollout[name] or ""))
        table.add_row("stage", _stage_of(rollout))
        for name, count in rollout["counts"].items():
            table.add_row(name, str(count))
        console.print(table)

    emit(rollout, as_json=as_json, render=render)
