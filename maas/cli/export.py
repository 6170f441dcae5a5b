"""``maas export``: from a model to a verified bundle for a device, in one call."""

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.table import Table

from maas.bootstrap import resolve_settings
from maas.bootstrap.exports import ExportDemand, export_here
from maas.cli.client import GatewayClient, KeyOption, UrlOption, client_of
from maas.cli.exports import ask_for, download, export_there, print_export
from maas.cli.metadata import MetadataOption, parse_metadata
from maas.cli.output import JsonFlag, emit
from maas.core.errors import ConfigError, Unavailable
from maas.edge.export.spec import (
    BUNDLE_NAME,
    AdapterMode,
    Precision,
    Progress,
    QualityDemand,
    ShrinkDemand,
    ShrinkMethod,
    Target,
)

_PRECISIONS: dict[str, Precision] = {name: name for name in get_args(Precision)}
_MODES: dict[str, AdapterMode] = {name: name for name in get_args(AdapterMode)}
Report = Callable[[Progress], None]
_METHODS: dict[str, ShrinkMethod] = {name: name for name in get_args(ShrinkMethod)}
_MB = 1_000_000
_PARTS = ("prefill", "decode")
_TARGETS: dict[str, Target] = {name: name for name in get_args(Target)}


@dataclass(frozen=True)
class _Wanted:
    """What the flags ask for; ``adapters`` as they were given, names or folders."""

    model: str
    target: Target
    precision: Precision
    demand: ExportDemand
    adapters: tuple[str, ...]
    metadata: dict[str, str] | None

    def body(self) -> dict[str, Any]:
        """Return it as the API takes it."""
        demand = self.demand
        return {
            "model": self.model,
            "target": self.target,
            "precision": self.precision,
            "adapter_mode": demand.adapter_mode,
            "adapters": self.adapters,
            "shrink": None if demand.shrink is None else demand.shrink.model_dump(mode="json"),
            "quality": demand.quality.model_dump(),
            "name": demand.name,
            "metadata": self.metadata,
        }


_AdapterOption = Annotated[
    list[str] | None,
    typer.Option(help="Tuned model or alias of the project, or a PEFT folder; may repeat."),
]
_MinScoreOption = Annotated[
    float, typer.Option(min=0, max=100, help="Refuse a bundle that keeps less, in percent.")
]
_ParametersOption = Annotated[
    int | None, typer.Option(min=1, help="Shrink to at most so many, then recover.")
]
_MegabytesOption = Annotated[
    float | None, typer.Option(min=1, help="Shrink until the bundle takes no more megabytes.")
]
_DivergenceOption = Annotated[
    float | None, typer.Option(help="Refuse a bundle further away, in nats a token.")
]


_TargetOption = Annotated[
    str,
    typer.Option(
        help="cpu; mobile (the same bytes as cpu under another name: tried on this machine's "
        "processors, on no phone); cuda (needs a GPU here)."
    ),
]
_GoalOption = Annotated[
    float, typer.Option(min=0, max=100, help="Percent of the score to search for; less is marked.")
]
_AttemptsOption = Annotated[
    int, typer.Option(min=1, max=10, help="Settings that are built and compared at most.")
]
_NameOption = Annotated[
    str | None, typer.Option(help="Of the bundle; default: of model and precision.")
]
_DetachOption = Annotated[
    bool, typer.Option("--detach", help="Ask the platform for it, and do not wait.")
]


def export(  # noqa: PLR0913 - one a flag
    model: Annotated[str, typer.Argument(help="Model id, as in: maas model list.")],
    out: Annotated[
        Path | None, typer.Option(help="File to write, by custom *.maas; unless --detach.")
    ] = None,
    target: _TargetOption = "cpu",
    precision: Annotated[str, typer.Option(help=", ".join(_PRECISIONS))] = "int4",
    adapter: _AdapterOption = None,
    adapter_mode: Annotated[str, typer.Option(help=", ".join(_MODES))] = "merge",
    min_score: _MinScoreOption = 80.0,
    target_parameters: _ParametersOption = None,
    target_mb: _MegabytesOption = None,
    shrink_by: Annotated[str, typer.Option(help=", ".join(_METHODS))] = "prune",
    max_divergence: _DivergenceOption = None,
    goal: _GoalOption = 98.0,
    max_attempts: _AttemptsOption = 4,
    recover_s: Annotated[float, typer.Option(min=0, help="Seconds of recovery.")] = 300.0,
    force: Annotated[bool, typer.Option(help="Make it all the same, marked as forced.")] = False,
    name: _NameOption = None,
    metadata: MetadataOption = None,
    detach: _DetachOption = False,
    url: UrlOption = None,
    key: KeyOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Quantise a model, prove it against the original, and pack it into one signed file."""
    _check_one_of("target", target, _TARGETS)
    _check_one_of("precision", precision, _PRECISIONS)
    _check_one_of("adapter-mode", adapter_mode, _MODES)
    if name is not None and not re.match(BUNDLE_NAME, name):
        raise ConfigError(f"--name {name!r}: want at most 64 letters, digits, '.', '_' and '-'")
    try:
        shrink = _shrink(shrink_by, target_parameters, target_mb, recover_s)
        quality = QualityDemand(
            min_score_percent=min_score,
            goal_percent=goal,
            max_kl_divergence=max_divergence,
            max_attempts=max_attempts,
            force=force,
        )
    except ValidationError as error:
        raise _refusal(error) from error
    folders = _folders(adapter or [], url)
    wanted = _Wanted(
        model,
        _TARGETS[target],
        _PRECISIONS[precision],
        ExportDemand(quality, shrink, _MODES[adapter_mode], folders, name),
        tuple(adapter or ()),
        parse_metadata(metadata),
    )
    if detach:
        _ask(wanted, out, client_of(url, key), as_json=as_json)
    else:
        # The platform has no folder of this machine: those are exported here.
        _make(wanted, out, None if folders else _platform(url, key), as_json=as_json)


def _ask(wanted: _Wanted, out: Path | None, client: GatewayClient, *, as_json: bool) -> None:
    if out is not None:
        raise ConfigError("--detach writes no file: fetch it later with maas bundle download")
    if wanted.demand.adapters:
        raise ConfigError(
            f"--adapter {wanted.demand.adapters[0]}: a folder is exported here, without --detach"
        )
    print_export(ask_for(client, wanted.body()), as_json=as_json)


def _make(
    wanted: _Wanted, out: Path | None, client: GatewayClient | None, *, as_json: bool
) -> None:
    if out is None:
        raise ConfigError("name a file with --out, or leave it to the platform with --detach")
    if out.is_dir():
        raise ConfigError(f"--out {out}: is a folder; name a file")
    with _bar(is_quiet=as_json) as bar:
        task = bar.add_task("starting", total=100)

        def report(progress: Progress) -> None:
            what = progress.message or progress.phase
            bar.update(task, completed=progress.percent, description=what)

        manifest = (
            _made_here(wanted, out, report)
            if client is None
            else _made_there(wanted, client, out, report)
        )
    shown = _shown(manifest, out)
    emit(shown, as_json=as_json, render=lambda console: _render(console, shown))


def _made_here(wanted: _Wanted, out: Path, report: Report) -> dict[str, Any]:
    if wanted.adapters and not wanted.demand.adapters:
        raise ConfigError(f"--adapter {wanted.adapters[0]}: no folder, and no platform answers")
    if wanted.metadata:
        raise ConfigError("--metadata is the platform's to keep; this export is made without it")
    return export_here(
        resolve_settings(),
        wanted.model,
        target=wanted.target,
        precision=wanted.precision,
        demand=wanted.demand,
        out=out,
        report=report,
    ).manifest


def _made_there(
    wanted: _Wanted, client: GatewayClient, out: Path, report: Report
) -> dict[str, Any]:
    bundle = export_there(client, wanted.body(), report)
    report(Progress(phase="downloading", percent=99, message="downloading"))
    download(client.source(f"/bundles/{bundle['id']}/content"), bundle, out)
    return bundle["manifest"]


def _check_one_of(name: str, given: str, offered: Collection[str]) -> None:
    if given not in offered:
        raise ConfigError(f"--{name} {given}: want {', '.join(offered)}", param=name)


def _folders(adapters: Sequence[str], url: str | None) -> tuple[Path, ...]:
    """Return the adapters that are folders here: all of them, or none.

    Raises:
        ConfigError: Some are, and others are not, or a platform was named.
    """
    folders = tuple(Path(name) for name in adapters if Path(name).is_dir())
    if folders and (len(folders) < len(adapters) or url is not None):
        raise ConfigError(
            f"--adapter {folders[0]}: a folder is exported here, without the platform; name all "
            "adapters so, or bring it to the platform first: POST /v1/adapters"
        )
    return folders


def _shrink(
    method: str, target_parameters: int | None, target_mb: float | None, recover_s: float
) -> ShrinkDemand | None:
    if method not in _METHODS:
        raise ConfigError(f"--shrink-by {method}: want {', '.join(_METHODS)}", param="shrink_by")
    if target_parameters is None and target_mb is None:
        return None
    if target_parameters is not None and target_mb is not None:
        raise ConfigError("name one of --target-parameters and --target-mb", param="target_mb")
    return ShrinkDemand(
        target_parameters=target_parameters,
        target_size_bytes=None if target_mb is None else int(target_mb * _MB),
        method=_METHODS[method],
        recover_s=recover_s,
    )


def _refusal(error: ValidationError) -> ConfigError:
    """Return what is wrong with a number."""
    first = error.errors()[0]
    return ConfigError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}")


def _shown(manifest: dict[str, Any], out: Path) -> dict[str, Any]:
    return {
        "bundle_id": manifest["bundle_id"],
        "path": str(out.absolute()),
        "size_bytes": out.stat().st_size,
        "receipt": manifest["receipt"],
        "cost_card": manifest["cost_card"],
        "marks": list(manifest["marks"]),
    }


def _platform(url: str | None, key: str | None) -> GatewayClient | None:
    """Return a client of the platform; none where none was named and none answers here."""
    try:
        client = client_of(url, key)
        client.get("/exports", limit=1)
    except (ConfigError, Unavailable):
        if url is not None:
            raise
        return None
    return client


def _bar(*, is_quiet: bool) -> Bar:
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    return Bar(*columns, console=Console(stderr=True), disable=is_quiet)


def _likeness(receipt: dict[str, Any]) -> dict[str, str]:
    if "mean_cosine" in receipt:
        return {"cosine to the original's": f"{receipt['mean_cosine']:.4f}"}
    return {
        "greedy tokens that agree": f"{100 * receipt['greedy_agreement']:.1f} %",
        "perplexity, times the original's": f"{receipt['perplexity_ratio']:.3f}",
    }


def _verdict(receipt: dict[str, Any]) -> str:
    below = receipt.get("below_goal", False)
    goal = f", below the goal of {receipt['goal_percent']:.4g} %" if below else ""
    return f"{receipt['verdict']}{goal}"


def _speed(tokens_per_s: float | None) -> str:
    return "-" if tokens_per_s is None else f"{tokens_per_s:.0f} tok/s"


def _render(console: Console, shown: dict[str, Any]) -> None:
    receipt, cost = shown["receipt"], shown["cost_card"]
    energy = cost["energy_j_per_token"]
    rows = {
        "bundle": shown["bundle_id"],
        "file": shown["path"],
        "size": f"{shown['size_bytes'] / 1e6:.1f} MB",
        "keeps of the original's score": f"{receipt['score_percent']:.1f} %",
        **_likeness(receipt),
        "verdict": _verdict(receipt),
        "load": f"{cost['load_s']:.2f} s",
        "prefill, decode": ", ".join(_speed(cost[f"{part}_tok_s"]) for part in _PARTS),
        "memory, one request": f"{cost['ram_peak_bytes'] / 1e6:.0f} MB",
        "energy": cost["energy_note"] if energy is None else f"{energy:.3f} J a token",
        "measured on": f"{cost['machine']}, {cost['num_threads']} threads",
    }
    table = Table(show_header=False, box=None)
    for name, value in rows.items():
        table.add_row(name, value)
    console.print(table)
