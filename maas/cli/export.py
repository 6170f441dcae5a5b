"""``maas export``: from a model to a verified bundle for a device, in one call."""

from pathlib import Path
from typing import Annotated, Any, get_args

import typer
from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.table import Table

from maas.bootstrap import resolve_settings
from maas.bootstrap.exports import ExportDemand, export_here
from maas.cli.client import GatewayClient, KeyOption, UrlOption, client_of
from maas.cli.exports import download, export_there
from maas.cli.output import JsonFlag, emit
from maas.core.errors import ConfigError, Unavailable
from maas.edge.export.spec import (
    Precision,
    Progress,
    QualityDemand,
    ShrinkDemand,
    ShrinkMethod,
    Target,
)

_PRECISIONS: dict[str, Precision] = {name: name for name in get_args(Precision)}
_METHODS: dict[str, ShrinkMethod] = {name: name for name in get_args(ShrinkMethod)}
_MB = 1_000_000
_PARTS = ("prefill", "decode")
_TARGETS: dict[str, Target] = {name: name for name in get_args(Target)}


def export(  # noqa: PLR0913 - one a flag
    model: Annotated[str, typer.Argument(help="Model id, as in: maas model list.")],
    out: Annotated[Path, typer.Option(help="File to write, by custom *.maas.")],
    target: Annotated[str, typer.Option(help=", ".join(_TARGETS))] = "cpu",
    precision: Annotated[str, typer.Option(help=", ".join(_PRECISIONS))] = "int4",
    min_score: Annotated[
        float, typer.Option(min=0, max=100, help="Refuse a bundle that keeps less, in percent.")
    ] = 80.0,
    target_parameters: Annotated[
        int | None, typer.Option(min=1, help="Shrink to at most so many, then recover.")
    ] = None,
    target_mb: Annotated[
        float | None, typer.Option(min=1, help="Shrink until the bundle takes no more megabytes.")
    ] = None,
    shrink_by: Annotated[str, typer.Option(help=", ".join(_METHODS))] = "prune",
    max_divergence: Annotated[
        float | None, typer.Option(help="Refuse a bundle further away, in nats a token.")
    ] = None,
    recover_s: Annotated[float, typer.Option(min=0, help="Seconds of recovery.")] = 300.0,
    force: Annotated[bool, typer.Option(help="Make it all the same, marked as forced.")] = False,
    url: UrlOption = None,
    key: KeyOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Quantise a model, prove it against the original, and pack it into one signed file."""
    if target not in _TARGETS:
        raise ConfigError(f"--target {target}: want {', '.join(_TARGETS)}", param="target")
    if precision not in _PRECISIONS:
        raise ConfigError(
            f"--precision {precision}: want {', '.join(_PRECISIONS)}", param="precision"
        )
    if out.is_dir():
        raise ConfigError(f"--out {out}: is a folder; name a file")
    shrink = _shrink(shrink_by, target_parameters, target_mb, recover_s)
    quality = QualityDemand(
        min_score_percent=min_score, max_kl_divergence=max_divergence, force=force
    )
    with _bar(is_quiet=as_json) as bar:
        task = bar.add_task("starting", total=100)

        def report(progress: Progress) -> None:
            what = progress.message or progress.phase
            bar.update(task, completed=progress.percent, description=what)

        body = {
            "model": model,
            "target": _TARGETS[target],
            "precision": _PRECISIONS[precision],
            "quality": quality.model_dump(),
        }
        # The platform shrinks nothing: that is done here.
        client = _platform(url, key) if shrink is None else None
        if client is None:
            result = export_here(
                resolve_settings(),
                model,
                target=_TARGETS[target],
                precision=_PRECISIONS[precision],
                demand=ExportDemand(quality=quality, shrink=shrink),
                out=out,
                report=report,
            )
            manifest = result.manifest
        else:
            bundle = export_there(client, body, report)
            manifest = bundle["manifest"]
            report(Progress(phase="downloading", percent=99, message="downloading"))
            download(client.source(f"/bundles/{bundle['id']}/content"), bundle, out)
    shown = _shown(manifest, out)
    emit(shown, as_json=as_json, render=lambda console: _render(console, shown))


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
        "verdict": receipt["verdict"],
        "load": f"{cost['load_s']:.2f} s",
        "prefill, decode": ", ".join(_speed(cost[f"{part}_tok_s"]) for part in _PARTS),
        "memory at most": f"{cost['ram_peak_bytes'] / 1e6:.0f} MB",
        "energy": cost["energy_note"] if energy is None else f"{energy:.3f} J a token",
        "measured on": f"{cost['machine']}, {cost['num_threads']} threads",
    }
    table = Table(show_header=False, box=None)
    for name, value in rows.items():
        table.add_row(name, value)
    console.print(table)
