"""``maas model``: what can be offered, whether it fits here, and getting its weights."""

from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.progress import Progress as Bar
from rich.table import Table

from maas.bootstrap import open_store, resolve_settings
from maas.bootstrap.adapters import bring_adapter, export_adapter
from maas.catalog.card import ModelCard
from maas.catalog.catalog import load_catalog
from maas.catalog.fit import FitReport, num_replicas_that_fit
from maas.catalog.machine import Machine, probe_machine
from maas.catalog.weights.files import Progress, source_access
from maas.cli.output import JsonFlag, emit
from maas.cli.receipt import render_receipt
from maas.cli.tenants import ProjectOption, find_project, opened
from maas.core.errors import ConfigError, NotFound
from maas.engines.prepare import folder_name, prepare_model, verify_model
from maas.finetune.receipt.records import read_receipt
from maas.serving.options import parse_options
from maas.serving.plan import check_quantization, size_up
from maas.store.state import DEFAULT_PROJECT

app = typer.Typer(
    help="Models: list, show, check, pull, verify; receipts of tuned ones.", no_args_is_help=True
)

ModelId = Annotated[str, typer.Argument(help="Model id, as in: maas model list.")]
Form = Annotated[
    str | None, typer.Option(help="Form of the weights: a variant of the card, or fp8.")
]
_GIB = 2**30


def _gib(size: int) -> str:
    return f"{size / _GIB:.2f} GiB"


def _lines(value: object) -> str:
    """Return a field of a card as a person reads it, one part a line."""
    if isinstance(value, dict):
        return "\n".join(f"{key}: {_lines(part)}" for key, part in value.items())
    if isinstance(value, list):
        return "\n".join(_lines(part) for part in value)
    return "" if value is None else str(value)


def _card(model_id: str) -> ModelCard:
    return load_catalog(resolve_settings().models_dir).get_card(model_id)


def _prepared_forms(card: ModelCard, weights_dir: Path) -> list[str | None]:
    """Return the forms of a model's weights that are here; none is the plain one."""
    forms = [None, *(variant.name for variant in card.variants if variant.source)]
    folders = {form: weights_dir / folder_name(card, form) for form in forms}
    return [form for form in forms if (folders[form] / "manifest.json").exists()]


@app.command("list")
def list_models(as_json: JsonFlag = False) -> None:
    """List the models there are cards of."""
    settings = resolve_settings()
    cards = list(load_catalog(settings.models_dir).values())
    here = {card.id: _prepared_forms(card, settings.weights_dir) for card in cards}
    rows = [
        {
            "id": card.id,
            "parameters": card.parameters,
            "context": card.context,
            "task": card.task,
            "licence": card.licence.grade.value,
            "engines": list(card.engines),
            "is_prepared": None in here[card.id],
            "prepared_variants": [form for form in here[card.id] if form],
        }
        for card in cards
    ]

    def render(console: Console) -> None:
        table = Table(box=None)
        for name in ("id", "size", "context", "task", "weights", "licence", "engines"):
            table.add_column(name, no_wrap=name in {"id", "size", "context", "task", "weights"})
        for card in cards:
            table.add_row(
                card.id,
                f"{card.parameters / 1e9:.2f} B",
                str(card.context),
                card.task,
                ", ".join(form or "here" for form in here[card.id]),
                card.licence.grade.value,
                ", ".join(card.engines),
            )
        console.print(table)

    emit({"models": rows}, as_json=as_json, render=render)


@app.command()
def show(model_id: ModelId, as_json: JsonFlag = False) -> None:
    """Show all a card says."""
    fields = _card(model_id).model_dump(mode="json")

    def render(console: Console) -> None:
        table = Table(show_header=False, box=None)
        for name, value in fields.items():
            table.add_row(name, _lines(value))
        console.print(table, markup=False)

    emit(fields, as_json=as_json, render=render)


def _render_fit(console: Console, report: FitReport, machine: Machine, num_replicas: int) -> None:
    is_cpu = not machine.gpus
    where = f"{len(machine.gpus)} x {machine.gpus[0].name}" if machine.gpus else "CPU"
    table = Table(show_header=False, box=None)
    table.add_row("machine", where)
    table.add_row("dtype", report.quantization or report.dtype)
    table.add_row("weights", _gib(report.weights_bytes))
    table.add_row("KV cache per token", f"{report.kv_bytes_per_token / 1024:.1f} KiB")
    sequences = f"{report.max_num_seqs} x {report.max_model_len} tokens"
    table.add_row("KV cache", f"{_gib(report.kv_bytes)} {'set aside' if is_cpu else 'at least'}")
    table.add_row("KV cache when full", f"{_gib(report.full_kv_bytes)} for {sequences}")
    if report.adapters_bytes:
        table.add_row("LoRA adapters", _gib(report.adapters_bytes))
    table.add_row("engine itself", _gib(report.overhead_bytes))
    table.add_row("in all", f"{_gib(report.total_bytes)} of {_gib(report.available_bytes)}")
    console.print(table)
    if report.fits:
        times = f", {num_replicas} times" if num_replicas > 1 else ""
        console.print(f"it fits{times}", style="bold green")
        return
    console.print(f"it does not fit: {report.reason}", style="bold red", soft_wrap=True)
    for line in report.advice:
        console.print(f"  - {line}", soft_wrap=True)


@app.command()
def check(  # noqa: PLR0913 - one option for each number an operator can turn
    model_id: ModelId,
    dtype: Annotated[str | None, typer.Option(help="Default: what suits this machine.")] = None,
    quantization: Form = None,
    max_model_len: Annotated[int | None, typer.Option(min=1)] = None,
    max_num_seqs: Annotated[int | None, typer.Option(min=1)] = None,
    kv_cache_bytes: Annotated[int | None, typer.Option(min=1, help="CPU only.")] = None,
    tensor_parallel_size: Annotated[int, typer.Option(min=1)] = 1,
    as_json: JsonFlag = False,
) -> None:
    """Say, with numbers, whether a model fits this machine. Exit code 1 when it does not.

    What is left open is chosen as `maas deploy create` chooses it.
    """
    settings = resolve_settings()
    machine = probe_machine(settings.weights_dir)
    options: dict[str, Any] = {
        "dtype": dtype,
        "quantization": quantization,
        "max_model_len": max_model_len,
        "max_num_seqs": max_num_seqs,
        "kv_cache_bytes": kv_cache_bytes,
        "tensor_parallel_size": tensor_parallel_size,
    }
    card = _card(model_id)
    check_quantization(card, quantization, card.engines[0], machine)
    _, report = size_up(card, machine, parse_options(options), engine=card.engines[0])
    num_replicas = num_replicas_that_fit(report, machine)
    emit(
        {**asdict(report), "num_replicas_that_fit": num_replicas},
        as_json=as_json,
        render=lambda console: _render_fit(console, report, machine, num_replicas),
    )
    if not report.fits:
        raise typer.Exit(code=1)


@app.command()
def pull(
    model_id: ModelId,
    quantization: Form = None,
    again: Annotated[
        bool, typer.Option("--again", help="Throw away what is there and fetch it anew.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Fetch a model's weights and make them ready; goes on where it was stopped."""
    settings, card = resolve_settings(), _card(model_id)
    check_quantization(card, quantization, card.engines[0])
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    bar = Bar(*columns, TransferSpeedColumn(), TimeRemainingColumn(), console=Console(stderr=True))
    with nullcontext() if as_json else bar:
        task = bar.add_task(card.id, total=None)

        def tell(progress: Progress) -> None:
            bar.update(
                task,
                description=progress.what,
                completed=progress.done_bytes,
                total=progress.total_bytes,
            )

        prepared = prepare_model(
            card,
            weights_dir=settings.weights_dir,
            progress=tell,
            quantization=quantization,
            allow_remote_code=settings.allow_remote_code,
            allow_pickle=settings.allow_pickle,
            access=source_access(settings),
            again=again,
        )
    size = sum(record.size_bytes for record in prepared.manifest.files.values())
    emit(
        {
            "id": card.id,
            "quantization": quantization,
            "model_dir": str(prepared.model_dir),
            "size_bytes": size,
        },
        as_json=as_json,
        render=lambda console: console.print(
            f"{prepared.model_dir.name}: {_gib(size)} in {prepared.model_dir}", soft_wrap=True
        ),
    )


@app.command()
def verify(model_id: ModelId, quantization: Form = None, as_json: JsonFlag = False) -> None:
    """Hash every byte of prepared weights and compare with what was recorded."""
    settings = resolve_settings()
    card = _card(model_id)
    check_quantization(card, quantization, card.engines[0])
    manifest = verify_model(
        card, weights_dir=settings.weights_dir, quantization=quantization, full=True
    )
    name = folder_name(card, quantization)
    emit(
        {
            "id": model_id,
            "quantization": quantization,
            "files": len(manifest.files),
            "is_whole": True,
        },
        as_json=as_json,
        render=lambda console: console.print(f"{name}: {len(manifest.files)} files are whole"),
    )


@app.command("add-adapter")
def add_adapter(
    folder: Annotated[
        Path, typer.Argument(help="adapter_config.json and adapter_model.safetensors, as PEFT's.")
    ],
    base: Annotated[str, typer.Option(help="The model it was tuned from.")],
    suffix: Annotated[str | None, typer.Option(help="Your part of its name.")] = None,
    project: ProjectOption = DEFAULT_PROJECT,
    as_json: JsonFlag = False,
) -> None:
    """Serve a LoRA adapter that was tuned elsewhere. It is checked before anything loads it."""
    store = opened()
    model, adapter = bring_adapter(
        resolve_settings(),
        store,
        folder,
        base_model_id=base,
        project=find_project(store, project),
        suffix=suffix,
    )
    emit(
        {"id": model.id, "adapter_sha256": adapter.id, "r": adapter.r, "base": base},
        as_json=as_json,
        render=lambda console: console.print(
            f"{model.id}: answers as soon as an engine of {base} holds it", soft_wrap=True
        ),
    )


@app.command("export-adapter")
def export(
    name: Annotated[
        str, typer.Argument(help="A tuned model, as in: ft:<base>:<org>:<suffix>:<id>.")
    ],
    folder: Annotated[Path, typer.Argument(help="A folder that is not there yet.")],
    as_json: JsonFlag = False,
) -> None:
    """Write a tuned model's adapter into a folder, as PEFT does, if its licence allows it."""
    if folder.exists():
        raise ConfigError(f"{folder} is there already; name a folder that is not")
    model = export_adapter(resolve_settings(), open_store(resolve_settings()), name, folder)
    emit(
        {"id": model.id, "adapter_sha256": model.adapter_id, "folder": str(folder)},
        as_json=as_json,
        render=lambda console: console.print(f"{folder}: the adapter of {name}", soft_wrap=True),
    )


@app.command()
def receipt(
    name: Annotated[
        str, typer.Argument(help="A tuned model, as in: ft:<base>:<org>:<suffix>:<id>.")
    ],
    as_json: JsonFlag = False,
) -> None:
    """Show the parity receipt of a tuned model: whether it answers as it was trained to.

    Exit code 1 when it failed.
    """
    model = open_store(resolve_settings()).tuned_models.find(name)
    if model is None:
        raise NotFound(f"no tuned model has the name {name!r}")
    found = read_receipt(model.receipt, name)
    emit(
        {"model": name, **found.model_dump(mode="json")},
        as_json=as_json,
        render=lambda console: render_receipt(console, name, found),
    )
    if found.verdict != "passed":
        raise typer.Exit(code=1)


@app.command()
def alias(
    name: Annotated[str, typer.Argument(help="The stable public name.")],
    model_id: Annotated[
        str | None, typer.Argument(help="The model it stands for; none removes it.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Let a stable name stand for a model; point it elsewhere at any time."""
    settings = resolve_settings()
    store = open_store(settings)
    if model_id is None:
        store.aliases.remove(name)
    else:
        deployed = {deployment.model_id for deployment in store.deployments.list()}
        tuned = {model.id for model in store.tuned_models.list()}
        if model_id not in deployed | tuned:
            load_catalog(settings.models_dir).get_card(model_id)
        if name in deployed or name in load_catalog(settings.models_dir):
            raise ConfigError(f"{name!r} is a model's own name; take another one")
        store.aliases.point(name, model_id)
    said = f"{name} is gone" if model_id is None else f"{name} stands for {model_id}"
    emit(
        {"alias": name, "model": model_id},
        as_json=as_json,
        render=lambda console: console.print(said),
    )
