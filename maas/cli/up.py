"""``maas up``: everything in the foreground, with progress; Ctrl-C stops it."""

import asyncio
from typing import Annotated

import typer
from rich.console import Console
from rich.status import Status

from maas.bootstrap import resolve_settings
from maas.bootstrap.keys import ADMIN_KEY_FILE
from maas.bootstrap.up import Progress, run_up
from maas.core.settings import Settings

_READY = """\
{headline} after {seconds:.1f} s, {memory:.2f} GiB in use. Ctrl-C stops everything.

  API      {url}/v1
  Metrics  http://127.0.0.1:{metrics_port}/metrics
  Key      {key_file}
  Logs     {logs_dir}
"""
_FIRST_REQUEST = """
Try it:

  curl -N {url}/v1/chat/completions -H "Authorization: Bearer $(cat {key_file})" \\
    -H "Content-Type: application/json" \\
    -d '{{"model": "{model}", "stream": true, "messages": [{{"role": "user", "content": \
"What is the capital of France?"}}]}}'
"""


class _Reporter:
    """Shows progress: one moving line on a terminal, one line a change elsewhere."""

    def __init__(self, console: Console, settings: Settings) -> None:
        self._console = console
        self._settings = settings
        self._status: Status | None = None
        self._last = ""
        if console.is_terminal:
            self._status = console.status("starting")
            self._status.start()

    def __call__(self, progress: Progress) -> None:
        gib = progress.memory_bytes / 2**30
        line = f"waiting for {progress.waiting_for}"
        if progress.is_ready:
            self.close()
            self._print_ready(progress)
        elif self._status is not None:
            self._status.update(f"{line}  [dim]{progress.seconds:.0f} s, {gib:.2f} GiB[/]")
        elif line != self._last:
            self._console.print(f"{progress.seconds:5.1f} s  {gib:.2f} GiB  {line}", markup=False)
        self._last = line

    def close(self) -> None:
        """Give the terminal back."""
        if self._status is not None:
            self._status.stop()

    def _print_ready(self, progress: Progress) -> None:
        settings = self._settings
        values = {
            "headline": "[bold yellow]Not all is up[/]"
            if progress.refused
            else "[bold green]Ready[/]",
            "url": settings.gateway_url,
            "metrics_port": settings.metrics_port,
            "key_file": settings.home / ADMIN_KEY_FILE,
            "logs_dir": settings.logs_dir,
            "seconds": progress.seconds,
            "memory": progress.memory_bytes / 2**30,
            "model": progress.chat_model,
        }
        self._console.print(_READY.format(**values), soft_wrap=True, highlight=False)
        for refused in progress.refused:
            self._console.print("  refused  ", style="bold red", end="")
            self._console.print(refused, soft_wrap=True, highlight=False, markup=False)
        if progress.chat_model is not None:
            # To be pasted: no wrapping, no markup.
            self._console.print(
                _FIRST_REQUEST.format(**values), soft_wrap=True, highlight=False, markup=False
            )


def up(
    model: Annotated[
        str | None, typer.Option(help="Model deployed at the first start, or 'none'.")
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(help="Engine of that model, as vllm; by default onnx without a GPU."),
    ] = None,
    port: Annotated[int | None, typer.Option(help="Port of the gateway.")] = None,
) -> None:
    """Start the platform in the foreground: Ray, controller, engines, gateway."""
    settings = resolve_settings({"model": model, "engine": engine, "port": port})
    console = Console()
    reporter = _Reporter(console, settings)
    try:
        asyncio.run(run_up(settings, reporter))
    finally:
        reporter.close()
    console.print("stopped")
