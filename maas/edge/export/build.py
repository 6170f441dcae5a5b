"""Builds the ONNX graph with onnxruntime-genai's builder and puts our weights into it."""

import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from maas.core.errors import EngineError
from maas.edge.export.gptq import Rounded

GRAPH, DATA = "model.onnx", "model.onnx.data"
_LAYER = re.compile(r"^/model/layers\.(\d+)/(attn|mlp)/(\w+)_proj/MatMul")
# The builder's names of the targets. A phone's processors run what a server's run.
PROVIDERS = {"cpu": "cpu", "mobile": "cpu", "cuda": "cuda"}
# What the builder packs into one product.
_PACKED = {"qkv": ("q", "k", "v"), "gate_up": ("gate", "up")}
_PARTS = {"attn": "self_attn", "mlp": "mlp"}


@dataclass(frozen=True)
class BuildOptions:
    """How the graph is made.

    Attributes:
        execution_provider: The builder's name of the target.
        precision: ``int4``, ``int8`` or ``fp16``.
        block_size: Weights that share a scale.
        head_bits: Of the head, and of the embedding where it is the same.
        accuracy_level: 4 computes products of int4 weights in int8, 1 in float32.
    """

    execution_provider: str = "cpu"
    precision: str = "int4"
    block_size: int = 64
    head_bits: int = 8
    accuracy_level: int = 4

    def arguments(self) -> list[str]:
        """Return the builder's extra options."""
        if self.precision == "fp16":
            return []
        options = [
            f"block_size={self.block_size}",
            f"accuracy_level={self.accuracy_level}",
            # The one algorithm whose tensors are named alike in graph and embedding.
            "algo_config=rtn",
        ]
        if self.precision == "int4" and self.head_bits != 4:
            options.append(f"matmul_mixed_precision=last_matmul:int{self.head_bits}")
        return options


def build(model_dir: Path, out: Path, options: BuildOptions) -> None:
    """Build a graph with round-to-nearest weights.

    Args:
        model_dir: Safetensors and configuration.
        out: A new folder.
        options: How.

    Raises:
        EngineError: The builder failed, or does not know the architecture.
    """
    precision = (
        "fp32"
        if options.precision == "fp16" and options.execution_provider == "cpu"
        else options.precision
    )
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder"]
    command += ["-m", str(model_dir), "-o", str(out), "-p", precision]
    command += ["-e", options.execution_provider, "-c", str(out.parent / "cache")]
    extra = options.arguments()
    command += ["--extra_options", *extra] if extra else []
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - fixed
    if done.returncode or not (out / GRAPH).exists():
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise EngineError(f"onnxruntime-genai cannot build {model_dir.name}: {last}")


def put_weights(folder: Path, rounded: Mapping[str, Rounded]) -> int:
    """Replace the weights of a built graph by ours, where both have the same grid.

    Args:
        folder: What ``build`` made.
        rounded: Weights by the names of their modules (``model.layers.0.self_attn.q_proj``).

    Returns:
        How many products of the graph got theirs.
    """
    model = onnx.load(str(folder / GRAPH))
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    num_put = 0
    for node in model.graph.node:
        parts = _modules_of(node.name, rounded) if node.op_type == "MatMulNBits" else None
        if parts is None:
            continue
        values, scales = _joined(parts)
        packed = pack(values, parts[0].grid.bits, parts[0].grid.block_size)
        _replace(tensors[node.input[1]], packed)
        _replace(
            tensors[node.input[2]],
            scales.astype(np.float32).reshape(tuple(tensors[node.input[2]].dims)),
        )
        num_put += 1
    (folder / DATA).unlink()
    onnx.save(
        model,
        str(folder / GRAPH),
        save_as_external_data=True,
        all_tensors_to_one_file=True,
        location=DATA,
        size_threshold=1024,
    )
    return num_put


def pack(values: NDArray[np.uint8], bits: int, block_size: int) -> NDArray[np.uint8]:
    """Pack values as MatMulNBits reads them: (outputs, blocks, bytes), the low half first."""
    num_outputs, num_inputs = values.shape
    num_blocks = -(-num_inputs // block_size)
    padded = np.full((num_outputs, num_blocks * block_size), 1 << (bits - 1), np.uint8)
    padded[:, :num_inputs] = values
    blocks = padded.reshape(num_outputs, num_blocks, block_size)
    if bits == 8:
        return blocks
    high = np.left_shift(blocks[..., 1::2], 4, dtype=np.uint8)
    return np.bitwise_or(blocks[..., 0::2], high)


def modules_of(node: str) -> tuple[str, ...]:
    """Return the modules that a product of the graph computes, by its node's name; none of most."""
    found = _LAYER.match(node)
    if found is None:
        return ("lm_head",) if node.startswith("/lm_head/") else ()
    layer, part, name = found.groups()
    shorts = _PACKED.get(name, (name,))
    return tuple(f"model.layers.{layer}.{_PARTS[part]}.{short}_proj" for short in shorts)


def _modules_of(node: str, rounded: Mapping[str, Rounded]) -> list[Rounded] | None:
    names = modules_of(node)
    known = bool(names) and all(item in rounded for item in names)
    return [rounded[item] for item in names] if known else None


def _joined(parts: Sequence[Rounded]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    values = np.concatenate([part.values.numpy() for part in parts])
    return values, np.concatenate([part.scales.numpy() for part in parts])


def _replace(tensor: onnx.TensorProto, array: NDArray[np.uint8] | NDArray[np.float32]) -> None:
    if tuple(tensor.dims) != array.shape:
        raise EngineError(f"{tensor.name}: shape {tuple(tensor.dims)}, and ours is {array.shape}")
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
