"""What this machine has, read without torch: a deployment is judged before anything starts."""

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import psutil

_CGROUP_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)
_MIB = 2**20


@dataclass(frozen=True)
class Gpu:
    """One GPU; ``memory_bytes`` is its whole memory."""

    name: str
    memory_bytes: int


@dataclass(frozen=True)
class Machine:
    """What a model may use.

    Attributes:
        memory_available_bytes: What can be had now without swapping.
        cpu_flags: Instruction sets, as /proc/cpuinfo names them.
    """

    num_cores: int
    memory_total_bytes: int
    memory_available_bytes: int
    disk_free_bytes: int
    gpus: tuple[Gpu, ...] = ()
    cpu_flags: frozenset[str] = frozenset()


def _probe_gpus() -> tuple[Gpu, ...]:
    command = shutil.which("nvidia-smi")
    if command is None:
        return ()
    query = ["--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(  # noqa: S603 - fixed arguments
            [command, *query], capture_output=True, text=True, timeout=10, check=True
        )
    except (subprocess.SubprocessError, OSError):
        return ()
    rows = [line.rsplit(",", 1) for line in answer.stdout.splitlines() if "," in line]
    return tuple(Gpu(name.strip(), int(float(mib)) * _MIB) for name, mib in rows)


def _cgroup_limit_bytes() -> int | None:
    for path in _CGROUP_LIMITS:
        try:
            text = path.read_text(encoding="ascii").strip()
        except OSError:
            continue
        if text.isdigit():
            return int(text)
    return None


def _cpu_flags() -> frozenset[str]:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith(("flags", "Features")):
                return frozenset(line.partition(":")[2].split())
    except OSError:
        pass
    return frozenset()


def probe_machine(path: Path) -> Machine:
    """Look at this machine.

    Args:
        path: Where weights would go; its disk is looked at.
    """
    memory = psutil.virtual_memory()
    limit = min(_cgroup_limit_bytes() or memory.total, memory.total)
    existing = next(parent for parent in [path, *path.parents] if parent.exists())
    return Machine(
        num_cores=len(psutil.Process().cpu_affinity()) or 1,
        memory_total_bytes=limit,
        memory_available_bytes=min(memory.available, limit),
        disk_free_bytes=shutil.disk_usage(existing).free,
        gpus=_probe_gpus(),
        cpu_flags=_cpu_flags(),
    )
