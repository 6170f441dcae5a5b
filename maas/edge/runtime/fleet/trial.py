"""Tries a bundle in a process of its own: ``python -m maas.edge.runtime.fleet.trial FOLDER``.

Whatever a graph does there, a crash included, harms nobody.
"""

import argparse
import asyncio
import signal
import sys
import time
from pathlib import Path

import msgspec

from maas.core.errors import EngineError, MaasError
from maas.core.lifeline import LIFELINE_FLAG, end_with_parent
from maas.edge.runtime.engine.options import EngineOptions
from maas.edge.runtime.fleet.probe import measure, probe
from maas.edge.runtime.fleet.wire import cut
from maas.edge.runtime.server.serve import open_served
from maas.edge.runtime.shelf.shelf import verify_folder
from maas.protocol.devices import SpeedReport

_TIMEOUT_S = 600.0
_MAX_CACHE_BYTES = 64 << 20


def trial_options(num_threads: int = 0, *, enable_spinning: bool = True) -> EngineOptions:
    """Return the options of a trial's engine: as little memory as does."""
    return EngineOptions(
        num_threads=num_threads,
        max_num_seqs=1,
        kv_cache_bytes=_MAX_CACHE_BYTES,
        prefix_cache_bytes=0,
        max_draft_tokens=0,
        enable_spinning=enable_spinning,
    )


def try_folder(folder: Path, options: EngineOptions) -> SpeedReport:
    """Load a bundle, have it answer, and measure it.

    Raises:
        MaasError: It does not work here.
    """
    manifest = verify_folder(folder, None)
    started = time.perf_counter()
    served = open_served(folder, "trial", options, manifest.adapters)
    load_s = time.perf_counter() - started
    try:
        # The bundle's own: the cache here is smaller than the one it will have.
        probe(served, manifest.max_model_len)
        return msgspec.structs.replace(measure(served), load_s=load_s)
    finally:
        served.engine.close()


async def try_apart(
    folder: Path, options: EngineOptions, timeout_s: float = _TIMEOUT_S
) -> SpeedReport:
    """Try a bundle in a process of its own, which ends with this one.

    Raises:
        EngineError: It does not work here; the message is the process's last line.
    """
    command = [sys.executable, "-P", "-m", "maas.edge.runtime.fleet.trial", str(folder)]
    command += ["--threads", str(options.threads), LIFELINE_FLAG]
    if not options.enable_spinning:
        command.append("--no-spinning")
    child = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        # Not communicate(): it would close the lifeline.
        async with asyncio.timeout(timeout_s):
            out, err, code = await _ended(child)
    except TimeoutError as error:
        raise EngineError(f"it was not done after {timeout_s:.0f} s") from error
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    if code < 0:
        raise EngineError(f"its process was killed by {signal.Signals(-code).name}")
    if code:
        lines = err.decode(errors="replace").strip().splitlines() or ["it said nothing"]
        raise EngineError(cut(lines[-1]))
    return msgspec.json.decode(out, type=SpeedReport)


async def _ended(child: asyncio.subprocess.Process) -> tuple[bytes, bytes, int]:
    if child.stdout is None or child.stderr is None:
        raise EngineError("the process has no output")
    out, err = await asyncio.gather(child.stdout.read(), child.stderr.read())
    return out, err, await child.wait()


def main() -> int:
    """Try one folder and print its speed; the exit code."""
    parser = argparse.ArgumentParser(prog="maas.edge.runtime.fleet.trial")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--no-spinning", action="store_true")
    parser.add_argument(LIFELINE_FLAG, action="store_true")
    given = parser.parse_args()
    if given.lifeline:
        end_with_parent()
    options = trial_options(given.threads, enable_spinning=not given.no_spinning)
    try:
        speed = try_folder(given.folder, options)
    except MaasError as error:
        sys.stderr.write(f"{error.message}\n")
        return 1
    sys.stdout.write(msgspec.json.encode(speed).decode() + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
