"""Adapters that a graph takes at run time, read from onnxruntime's own format and checked.

They are bound to each run as inputs: onnxruntime takes the active adapters of ``RunOptions`` into
account only where memory is not bound.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnxruntime as ort

from maas.core.errors import EngineError
from maas.edge.runtime.bundle.manifest import ADAPTER_FILE

Values = Mapping[str, Any]


def is_runtime_adapter(folder: Path) -> bool:
    """Say whether a folder holds an adapter for a graph that has inputs for it."""
    return (folder / ADAPTER_FILE).exists()


def read_values(folder: Path, session: ort.InferenceSession) -> Values:
    """Read an adapter: values by the names of the graph's inputs.

    Args:
        folder: Holds ``adapter.onnx_adapter``.
        session: The graph that takes it.

    Raises:
        EngineError: It cannot be read, or the graph has other inputs.
    """
    path = folder / ADAPTER_FILE
    # Its types ask for a PathLike, and its code takes text only.
    plain: Any = str(path)
    try:
        values = ort.AdapterFormat.read_adapter(plain).get_parameters()
    except Exception as error:
        # onnxruntime's exceptions share no base but this one.
        raise EngineError(f"{path.name}: not an adapter of onnxruntime: {error}") from error
    inputs = {item.name: item for item in session.get_overridable_initializers()}
    if not inputs:
        raise EngineError("the model's graph has no inputs for adapters")
    ranks: dict[str, int] = {}
    for name, value in values.items():
        wanted = inputs.get(name)
        if wanted is None:
            raise EngineError(f"{path.name}: the graph has no input {name[:100]!r}")
        shape = value.shape()
        is_like = len(shape) == len(wanted.shape) and all(
            size == given if isinstance(size, int) else ranks.setdefault(size, given) == given
            for size, given in zip(wanted.shape, shape, strict=True)
        )
        if not is_like or value.data_type() != wanted.type:
            raise EngineError(
                f"{path.name}: {name[:100]} is {value.data_type()} {shape}; the graph takes "
                f"{wanted.type} {wanted.shape}"
            )
    half = [
        n
        for n, item in inputs.items()
        if n not in values and not ranks.keys().isdisjoint(item.shape)
    ]
    if half:
        raise EngineError(f"{path.name}: {half[0]} is missing")
    return values
