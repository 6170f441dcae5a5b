"""The linear layers of a base model, read off its weights: what an adapter may change."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from maas.core.errors import AdapterRefused
from maas.finetune.safetensors_header import read_header

# Linear layers of a transformer block, as the families name them. Not the embedding and not the
# head: buffers for their adapters have a row for each word of the vocabulary, in every slot.
LINEAR_MODULES = frozenset(
    {
        *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
        *("qkv_proj", "gate_up_proj", "query_key_value", "dense", "dense_h_to_4h"),
        *("dense_4h_to_h", "wqkv", "wo", "w1", "w2", "w3", "W_pack", "out_proj", "fc_in"),
        *("fc_out", "fc1", "fc2", "c_attn", "c_proj", "c_fc"),
    }
)
_IN_A_LAYER = re.compile(r"(?:^|\.)\d+\.")


@dataclass(frozen=True)
class BaseModules:
    """Linear layers by name, with rows and columns; none where the weights are packed."""

    shapes: dict[str, tuple[int, int] | None]

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The layers' own names, without where they are."""
        return tuple(sorted({name.rpartition(".")[2] for name in self.shapes}))

    def check(self, module: str, *, num_out: int, num_in: int) -> None:
        """Check that an adapter's matrices fit a module.

        Raises:
            AdapterRefused: The base has no such module, or one of another shape.
        """
        if module not in self.shapes:
            raise AdapterRefused(
                f"the base has no linear layer {module[:200]!r}; was the adapter tuned from "
                f"another model? Its layers are called: {', '.join(self.names)}"
            )
        shape = self.shapes[module]
        if shape is not None and shape != (num_out, num_in):
            raise AdapterRefused(
                f"{module[:200]!r} of the base is {shape[0]} x {shape[1]} and the adapter's is "
                f"{num_out} x {num_in}; was it tuned from another model?"
            )


def read_base_modules(model_dir: Path) -> BaseModules | None:
    """Return the linear layers of prepared weights; none where there are no safetensors.

    Raises:
        AdapterRefused: The weights cannot be read.
    """
    files = sorted(model_dir.glob("*.safetensors"))
    shapes: dict[str, tuple[int, int] | None] = {}
    for file in files:
        entries = read_header(file)
        shapes |= dict(_linear(entry.name, entry.shape) for entry in _blocks(entries.values()))
    return BaseModules(shapes) if shapes else None


def _blocks(entries: Iterable) -> Iterable:
    for entry in entries:
        module, _, part = entry.name.rpartition(".")
        is_linear = module.rpartition(".")[2] in LINEAR_MODULES and _IN_A_LAYER.search(module)
        if is_linear and part in {"weight", "qweight"} and len(entry.shape) == 2:
            yield entry


def _linear(name: str, shape: tuple[int, ...]) -> tuple[str, tuple[int, int] | None]:
    module, _, part = name.rpartition(".")
    return module, (shape[0], shape[1]) if part == "weight" else None
