"""A parity receipt as a person reads it."""

from rich.console import Console
from rich.table import Table

from maas.finetune.receipt.records import Identity, Leg, Receipt

_NAMES = {
    "engine": "engine with the adapter",
    "merged": "adapter merged into the weights",
    "saved": "weights as they were saved",
}


def render_receipt(console: Console, name: str, receipt: Receipt) -> None:
    """Print the verdict, its reasons and the figures."""
    style = "bold green" if receipt.verdict == "passed" else "bold red"
    console.print(f"{name}: {receipt.verdict}", style=style, soft_wrap=True)
    for reason in receipt.reasons:
        console.print(f"  - {reason}", soft_wrap=True)
    console.print(_figures(receipt))
    console.print(_identities(receipt))
    rendering = {True: "yes", False: "no", None: "the engine does not tell"}
    console.print(f"chats rendered alike: {rendering[receipt.same_rendering]}", soft_wrap=True)
    asked = f"{receipt.prompts} golden prompts, {receipt.positions} tokens, {receipt.dtype}"
    versions = [f"{library} {version}" for library, version in receipt.versions.items()]
    console.print(", ".join([asked, *versions]), soft_wrap=True)


def _figures(receipt: Receipt) -> Table:
    table = Table(box=None)
    for column in ("compared with the trainer", "same token", "same answer"):
        table.add_column(column)
    for column in ("max difference", "mean", "adapter's effect"):
        table.add_column(column, justify="right")
    for name, leg in receipt.legs.items():
        if leg.status == "not_measured":
            table.add_row(_NAMES.get(name, name), f"not measured: {leg.why}")
        else:
            table.add_row(_NAMES.get(name, name), *_row(leg))
    if receipt.effect is not None:
        table.add_row("base without the adapter", *_row(receipt.effect))
    for name, limits in receipt.thresholds.items():
        table.add_row(
            f"wanted of {_NAMES.get(name, name)}",
            f">= {limits.min_greedy_token_agreement:.0%}",
            "-",
            f"<= {limits.max_logit_difference:g}",
            f"<= {limits.max_mean_logit_difference:g}",
            f"100% +- {limits.max_effect_error:.0%}",
            style="dim",
        )
    return table


def _row(leg: Leg) -> list[str]:
    return [
        _share(leg.greedy_token_agreement),
        _share(leg.free_run_agreement),
        _number(leg.max_logit_difference),
        _number(leg.mean_logit_difference),
        _share(leg.effect_applied),
    ]


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.6f}"


def _identities(receipt: Receipt) -> Table:
    table = Table(box=None)
    for column in ("SHA-256 of", "trainer", "engine"):
        table.add_column(column)
    ours, theirs = receipt.hashes.trainer, receipt.hashes.engine or Identity()
    for what in ("template", "tokenizer", "weights"):
        table.add_row(what, _short(getattr(ours, what)), _short(getattr(theirs, what)))
    table.add_row("adapter", _short(receipt.hashes.adapter), "")
    return table


def _short(value: str | None) -> str:
    return "-" if value is None else value[:16]
