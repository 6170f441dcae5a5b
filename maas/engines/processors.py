"""How many processors an engine may use."""

import os

from maas.engines.contract import EngineSpec


def num_threads(spec: EngineSpec) -> int:
    """Return the threads an engine on processors computes with: one for each it may use."""
    if spec.cpu_ids:
        return len(spec.cpu_ids)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
