"""Flags that several commands take, and the engine's options they make."""

from collections.abc import Callable
from dataclasses import replace
from enum import StrEnum
from typing import Annotated

import typer

from maas.edge.runtime.cli.shared import check_positive
from maas.edge.runtime.engine.options import EngineOptions
from maas.edge.runtime.engine.pace import PaceReader, at_full_pace
from maas.edge.runtime.pacer import watch_machine

DEFAULTS = EngineOptions()
KV_CACHE_MB = DEFAULTS.kv_cache_bytes >> 20
PREFIX_CACHE_MB = DEFAULTS.prefix_cache_bytes >> 20


class PaceMode(StrEnum):
    """Whether the engine spares its machine."""

    AUTO = "auto"
    FULL = "full"


Host = Annotated[str, typer.Option(help="Address to listen on.")]
Port = Annotated[int, typer.Option(min=0, max=65535)]
ServedModelName = Annotated[
    str | None, typer.Option(help="Name on the wire; default: the bundle's model.")
]
Threads = Annotated[int, typer.Option(help="Threads that compute; 0: all processors.")]
Cool = Annotated[
    bool,
    typer.Option("--cool", help="Half the processors, sleeping between steps: saves the battery."),
]
Pace = Annotated[
    PaceMode,
    typer.Option(help="auto: pause between steps where the machine is hot or the battery empties."),
]
MaxNumSeqs = Annotated[int, typer.Option(min=1, help="Requests at a time.")]
MaxModelLen = Annotated[int, typer.Option(min=0, help="0: the model's own.")]
KvCacheMb = Annotated[
    int, typer.Option(min=1, help="Memory for keys and values of running requests, in MiB.")
]
PrefixCacheMb = Annotated[
    int, typer.Option(min=0, help="Memory for those that are remembered, in MiB; 0: none are.")
]
AllowOrigin = Annotated[
    list[str] | None,
    typer.Option(help="A web page's origin that may ask, like http://localhost:3000; repeatable."),
]


def engine_options(
    threads: int,
    *,
    cool: bool,
    pace: PaceMode = PaceMode.AUTO,
    watch: Callable[[], PaceReader] = watch_machine,
    **sizes: int,
) -> EngineOptions:
    """Return the engine's options as the command line has them.

    Args:
        threads: Those that compute.
        cool: Whether to take half the processors, whose threads sleep.
        pace: Whether to spare the machine.
        watch: Begins to watch it.
        sizes: Of the engine.
    """
    check_positive(threads, flag="--threads")
    reader = at_full_pace if pace is PaceMode.FULL else watch()
    wanted = replace(DEFAULTS, num_threads=threads, pace=reader, **sizes)
    if not cool:
        return wanted
    half = max(1, DEFAULTS.threads // 2)
    return replace(wanted, num_threads=threads or half, enable_spinning=False)
