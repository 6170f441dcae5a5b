"""What this machine has, read without torch: a deployment is judged before anything starts."""

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import psutil

_CGROUP_V2 = ("memory.max", "memory.current", "inactive_file")
_CGROUP_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_CGROUPS = (
    (Path("/sys/fs/cgroup"), _CGROUP_V2),
    (Path("/sys/fs/cgroup/memory"), _CGROUP_V1),
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


def _cgroup_memory() -> tuple[int, int] | None:
    """Return this container's limit and what is left of it; page cache can be had back."""
    for folder, (limit_name, usage_name, cache_name) in _CGROUPS:
        try:
            limit = int((folder / limit_name).read_text(encoding="ascii"))
            usage = int((folder / usage_name).read_text(encoding="ascii"))
            rows = (folder / "memory.stat").read_text(encoding="ascii").splitlines()
        except (OSError, ValueError):
            # Not this kind of cgroup, or "max": no limit.
            continue
        cache = next((int(row.split()[1]) for row in rows if row.startswith(f"{cache_name} ")), 0)
        return limit, max(limit - usage + cache, 0)
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
    limit, left = _cgroup_memory() or (memory.total, memory.available)
    existing = next(parent for parent in [path, *path.parents] if parent.exists())
    return Machine(
        num_cores=len(psutil.Process().cpu_affinity()) or 1,
        memory_total_bytes=min(memory.total, limit),
        memory_available_bytes=min(memory.available, left),
        disk_free_bytes=shutil.disk_usage(existing).free,
        gpus=_probe_gpus(),
        cpu_flags=_cpu_flags(),
    )
