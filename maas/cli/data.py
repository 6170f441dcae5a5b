"""``maas data``: is a file fit to train on, and what would it cost? Needs no server."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from maas.bootstrap import resolve_settings
from maas.catalog.card import ModelCard
from maas.catalog.catalog import load_catalog
from maas.catalog.machine import probe_machine
from maas.catalog.weights.files import source_access
from maas.cli.output import JsonFlag, emit
from maas.core.errors import ConfigError, HostError, WeightsError
from maas.core.settings import Settings
from maas.engines.prepare import prepare_model
from maas.finetune.data.child import check_files
from maas.finetune.data.estimate import Estimate, duration, estimate_job, tokens_per_second
from maas.finetune.data.problems import DataReport, Problem
from maas.finetune.recipe import Method

app = typer.Typer(help="Training data: check.", no_args_is_help=True)
_SHOWN = 100
_METHODS: dict[str, Method] = {"supervised": "supervised", "dpo": "dpo", "pretrain": "pretrain"}


@app.command()
def check(
    file: Annotated[Path, typer.Argument(help="JSON lines, or .txt for --method pretrain.")],
    model: Annotated[str, typer.Option(help="Model that is to learn it.")],
    validation: Annotated[Path | None, typer.Option(help="File that is held back.")] = None,
    method: Annotated[str, typer.Option(help="supervised, dpo or pretrain.")] = "supervised",
    epochs: Annotated[int | None, typer.Option(min=1, help="Default: as 'auto' does.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Check training data: every problem at once, tokens, cost and time; exit code 1 on errors."""
    if method not in _METHODS:
        raise ConfigError(f"--method {method}: want {', '.join(_METHODS)}")
    for path in (file, validation):
        if path is not None and not path.is_file():
            raise ConfigError(f"{path}: no such file")
    settings = resolve_settings()
    card = load_catalog(settings.models_dir).get_card(model)
    model_dir, why_not = _tokenizer(card, settings)
    report = check_files(
        file, validation, method=_METHODS[method], model_dir=model_dir, max_length=card.context
    )
    estimate = None
    if report.are_tokens_counted:
        cores = probe_machine(settings.weights_dir).num_cores
        speed = tokens_per_second(card.parameters, num_cores=cores)
        estimate = estimate_job(report, card, epochs=epochs, tokens_per_s=speed)
    result: dict[str, Any] = report.model_dump(mode="json")
    result |= {"estimate": estimate.model_dump(mode="json") if estimate else None}
    result |= {"tokens_not_counted": why_not}
    emit(
        result,
        as_json=as_json,
        render=lambda console: _render(console, report, estimate, why_not),
    )
    if report.num_errors:
        raise typer.Exit(code=1)


def _tokenizer(card: ModelCard, settings: Settings) -> tuple[Path | None, str | None]:
    """Return the folder of a model's tokenizer, or why there is none."""
    try:
        prepared = prepare_model(
            card,
            weights_dir=settings.weights_dir,
            progress=lambda _: None,
            allow_remote_code=settings.allow_remote_code,
            allow_pickle=settings.allow_pickle,
            access=source_access(settings),
        )
    except (WeightsError, HostError) as error:
        return None, error.message
    return prepared.model_dir, None


def _render(
    console: Console, report: DataReport, estimate: Estimate | None, why_not: str | None
) -> None:
    problems = [*report.errors, *report.warnings]
    if problems:
        console.print(_problems(problems[:_SHOWN]))
        rest = report.num_errors + report.num_warnings - min(len(problems), _SHOWN)
        if rest:
            counts = ", ".join(f"{code} {number}" for code, number in report.counts.items())
            console.print(f"and {rest} more; in all: {counts}", soft_wrap=True)
    verdict = "cannot be trained on" if report.num_errors else "can be trained on"
    console.print(
        f"{verdict}: {report.num_errors} errors, {report.num_warnings} warnings",
        style="bold red" if report.num_errors else "bold green",
    )
    tokens = report.tokens
    console.print(
        f"{report.num_examples} examples, {report.num_validation_examples} held back",
        soft_wrap=True,
    )
    if not report.are_tokens_counted:
        console.print(f"tokens were not counted: {why_not}", soft_wrap=True)
        return
    console.print(
        f"{tokens.total} tokens, {tokens.targets} of them learned; an example has p50 {tokens.p50},"
        f" p95 {tokens.p95}, at most {tokens.max}",
        soft_wrap=True,
    )
    if estimate:
        console.print(
            f"estimate: {estimate.num_epochs} epochs, {estimate.num_trained_tokens} tokens, "
            f"{estimate.cost} {estimate.currency}, about {duration(estimate.seconds)} here at "
            f"{estimate.tokens_per_s:.0f} tokens/s (LoRA)",
            soft_wrap=True,
        )


def _problems(problems: list[Problem]) -> Table:
    table = Table(box=None)
    for name in ("", "code", "where", "what is wrong", "what to do"):
        table.add_column(name, overflow="fold")
    for problem in problems:
        where = f"{problem.file}:{problem.line}" if problem.line else problem.file
        field = f" {problem.field}" if problem.field else ""
        table.add_row(problem.severity, problem.code, where + field, problem.message, problem.fix)
    return table
