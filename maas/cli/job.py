"""``maas job``: fine-tuning jobs, through the gateway like any client."""

import sys
import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from maas.cli.client import GatewayClient, KeyOption, UrlOption, client_of
from maas.cli.job_watch import headline, printable
from maas.cli.job_watch import watch as follow
from maas.cli.metadata import MetadataOption, parse_metadata
from maas.cli.output import JsonFlag, emit
from maas.core.errors import ConfigError
from maas.finetune.data.estimate import duration

app = typer.Typer(
    help="Fine-tuning jobs: create, watch, list, get, pause, resume, cancel.", no_args_is_help=True
)
PURPOSE = "fine-tune"
_JOBS = "/fine_tuning/jobs"


class Method(StrEnum):
    """What the data teaches."""

    SUPERVISED = "supervised"
    DPO = "dpo"


def _number(text: str | None, option: str) -> str | float | int | None:
    if text is None or text == "auto":
        return text
    try:
        return int(text) if text.isdecimal() else float(text)
    except ValueError as error:
        raise ConfigError(f"{option} {text!r}: want a number or auto") from error


def _file_id(client: GatewayClient, given: str) -> str:
    """Return the id of a file that is here or was uploaded before."""
    path = Path(given)
    if not path.exists() and given.startswith("file-"):
        return given
    return str(client.upload(path, PURPOSE)["id"])


@app.command()
def create(  # noqa: PLR0913 - one option for each thing a person may set
    file: Annotated[str, typer.Argument(help="Training data: a file here, or the id of one.")],
    model: Annotated[str, typer.Option(help="Base model, as in: maas model list.")],
    validation: Annotated[str | None, typer.Option(help="Validation data, likewise.")] = None,
    suffix: Annotated[str | None, typer.Option(help="Part of the tuned model's name.")] = None,
    method: Annotated[Method, typer.Option(help="What the data teaches.")] = Method.SUPERVISED,
    recipe: Annotated[str | None, typer.Option(help="lora, qlora, full, dpo, pretrain.")] = None,
    epochs: Annotated[str | None, typer.Option(help="Number or auto.")] = None,
    batch_size: Annotated[str | None, typer.Option(help="Number or auto.")] = None,
    learning_rate_multiplier: Annotated[str | None, typer.Option(help="Number or auto.")] = None,
    beta: Annotated[str | None, typer.Option(help="Of dpo: number or auto.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Default: drawn.")] = None,
    metadata: MetadataOption = None,
    url: UrlOption = None,
    key: KeyOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Upload the data and make a job of it."""
    numbers = {
        "n_epochs": _number(epochs, "--epochs"),
        "batch_size": _number(batch_size, "--batch-size"),
        "learning_rate_multiplier": _number(learning_rate_multiplier, "--learning-rate-multiplier"),
        "beta": _number(beta, "--beta"),
        "recipe": recipe,
    }
    given = {name: value for name, value in numbers.items() if value is not None}
    labels = parse_metadata(metadata)
    client = client_of(url, key)
    body: dict[str, Any] = {
        "model": model,
        "training_file": _file_id(client, file),
        "validation_file": None if validation is None else _file_id(client, validation),
        "suffix": suffix,
        "seed": seed,
        "method": {"type": method.value, method.value: {"hyperparameters": given}},
        "metadata": labels,
    }
    job = client.post(_JOBS, {name: value for name, value in body.items() if value is not None})
    _show(job, as_json=as_json)


@app.command("list")
def list_jobs(
    limit: Annotated[int, typer.Option(min=1, max=100, help="Most jobs.")] = 20,
    url: UrlOption = None,
    key: KeyOption = None,
    as_json: JsonFlag = False,
) -> None:
    """List jobs, newest first."""
    page = client_of(url, key).get(_JOBS, limit=limit)

    def render(console: Console) -> None:
        table = Table("id", "model", "recipe", "created", "status", "tuned model")
        for job in page["data"]:
            made = _when(job["created_at"])
            tuned = job["fine_tuned_model"] or ""
            table.add_row(
                job["id"], job["model"], job["maas"]["recipe"], made, headline(job), tuned
            )
        console.print(table)

    emit(page, as_json=as_json, render=render)


@app.command()
def get(job_id: str, url: UrlOption = None, key: KeyOption = None, as_json: JsonFlag = False):
    """Show a job."""
    _show(client_of(url, key).get(f"{_JOBS}/{job_id}"), as_json=as_json)


@app.command()
def cancel(job_id: str, url: UrlOption = None, key: KeyOption = None, as_json: JsonFlag = False):
    """End a job now; what was trained is charged."""
    _show(client_of(url, key).post(f"{_JOBS}/{job_id}/cancel"), as_json=as_json)


@app.command()
def pause(job_id: str, url: UrlOption = None, key: KeyOption = None, as_json: JsonFlag = False):
    """Let a job rest after its next step; it keeps a checkpoint."""
    _show(client_of(url, key).post(f"{_JOBS}/{job_id}/pause"), as_json=as_json)


@app.command()
def resume(job_id: str, url: UrlOption = None, key: KeyOption = None, as_json: JsonFlag = False):
    """Go on with a job that rests."""
    _show(client_of(url, key).post(f"{_JOBS}/{job_id}/resume"), as_json=as_json)


@app.command()
def events(job_id: str, url: UrlOption = None, key: KeyOption = None, as_json: JsonFlag = False):
    """List what a job told, newest first."""
    found = client_of(url, key).every(f"{_JOBS}/{job_id}/events")

    def render(console: Console) -> None:
        for event in found:
            message = printable(event["message"])
            console.print(f"{_when(event['created_at'])}  {message}", soft_wrap=True)

    emit({"events": found}, as_json=as_json, render=render)


@app.command()
def checkpoints(
    job_id: str, url: UrlOption = None, key: KeyOption = None, as_json: JsonFlag = False
):
    """List a job's checkpoints, newest first, each with the name it answers under."""
    found = client_of(url, key).every(f"{_JOBS}/{job_id}/checkpoints")

    def render(console: Console) -> None:
        table = Table("step", "train loss", "valid loss", "model")
        for item in found:
            losses = [item["metrics"].get(name) for name in ("train_loss", "valid_loss")]
            shown = ["" if loss is None else f"{loss:.4f}" for loss in losses]
            table.add_row(str(item["step_number"]), *shown, item["fine_tuned_model_checkpoint"])
        console.print(table)

    emit({"checkpoints": found}, as_json=as_json, render=render)


@app.command()
def watch(
    job_id: str,
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds between looks.")] = 1.0,
    url: UrlOption = None,
    key: KeyOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Follow a job to its end: its loss as a curve, as lines where there is no terminal.

    Ends with 0 if it succeeded, else with 1. With --json, the job is printed at its end.
    """
    client = client_of(url, key)
    console = Console(markup=False, highlight=False, quiet=as_json)
    watched = follow(client, job_id, console, interval_s=interval)
    _show(watched.job, as_json=as_json)
    sys.exit(0 if watched.job["status"] == "succeeded" else 1)


def _when(epoch_s: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(epoch_s))


def _show(job: dict[str, Any], *, as_json: bool) -> None:
    rows: dict[str, Any] = {
        "id": job["id"],
        "status": headline(job),
        "model": job["model"],
        "recipe": job["maas"]["recipe"],
        "tuned model": job["fine_tuned_model"],
        "error": (job["error"] or {}).get("message"),
        "metrics file": ", ".join(job["result_files"]),
    }
    estimate = job["maas"].get("estimate") or {}
    if estimate:
        rows["costs at most"] = f"{estimate['cost']} {estimate['currency']}"
    if estimate.get("seconds") is not None:
        rows["takes about"] = duration(estimate["seconds"])

    def render(console: Console) -> None:
        for name, value in rows.items():
            if value:
                text = f"{name:13} {printable(value)}"
                console.print(text, soft_wrap=True, highlight=False)
        for problem in ((job["maas"].get("report") or {}).get("errors") or [])[:20]:
            where = f"line {problem['line']}" if problem["line"] else "file"
            field = f", {problem['field']}" if problem["field"] else ""
            text = printable(f"  {where}{field}: {problem['message']}; {problem['fix']}")
            console.print(text, soft_wrap=True, highlight=False)

    emit(job, as_json=as_json, render=render)
