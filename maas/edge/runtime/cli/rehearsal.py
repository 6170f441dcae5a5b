"""``maas-edge rehearse``: what a process of this command takes; for the cost card."""

from pathlib import Path
from typing import Annotated

import typer

from maas.edge.runtime.bench import Footprint, peak_bytes
from maas.edge.runtime.bundle.manifest import ADAPTERS, Adapter
from maas.edge.runtime.cli.flags import PaceMode, Threads, engine_options
from maas.edge.runtime.cli.shared import emit
from maas.edge.runtime.fleet.probe import probe
from maas.edge.runtime.server.grammars import json_grammar
from maas.edge.runtime.server.serve import open_served


def rehearse(
    folder: Annotated[Path, typer.Argument(help="An unpacked bundle.", file_okay=False)],
    threads: Threads = 0,
) -> None:
    """Compute the largest steps of a bundle in this process, and print the memory it took."""
    options = engine_options(threads, cool=False, pace=PaceMode.FULL)
    names = sorted(path.name for path in (folder / ADAPTERS).glob("*"))
    adapters = tuple(Adapter(name, f"{ADAPTERS}/{name}") for name in names)
    served = open_served(folder, "rehearsal", options, adapters)
    engine = served.engine
    try:
        engine.rehearse()
        probe(served)
        if engine.info.task == "generate":
            engine.compile_grammar(json_grammar({"type": "object"}))
    finally:
        engine.close()
    shown = Footprint(peak_bytes(), engine.info.kv_bytes_per_token)
    emit(shown.plain(), as_json=True, render=lambda _: None)
