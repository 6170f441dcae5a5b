"""Builds the ONNX graph with onnxruntime-genai's builder and puts our weights into it."""

import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx

from maas.core.errors import BuildFailed, EngineError
from maas.edge.export.builder_input import builder_input
from maas.edge.export.edit import (
    joined,
    put_nodes,
    quantise_embedding,
    replace_weights,
    split_product,
)
from maas.edge.export.failures import is_passing
from maas.edge.export.gptq import Rounded

GRAPH, DATA = "model.onnx", "model.onnx.data"
_LAYER = re.compile(r"^/model/layers\.(\d+)/(attn|mlp)/(\w+)_proj/MatMul")
# The builder's names of the targets. A phone's processors run what a server's run.
PROVIDERS = {"cpu": "cpu", "mobile": "cpu", "cuda": "cuda"}
# What the builder packs into one product.
_PACKED = {"qkv": ("q", "k", "v"), "gate_up": ("gate", "up")}
_PARTS = {"attn": "self_attn", "mlp": "mlp"}
# Every layer keeps keys and values of all positions: the engine's caches are of one length, and not
# to be read as the rings that layers with a window would have otherwise.
_WHOLE_CACHE = "windowed_kv_cache=false"


@dataclass(frozen=True)
class BuildOptions:
    """How the graph is made.

    Attributes:
        execution_provider: The builder's name of the target.
        precision: ``int4``, ``int8`` or ``fp16``.
        block_size: Weights that share a scale.
        head_bits: Of the head, and of the embedding where it is the same.
        accuracy_level: 4 computes products of int4 weights in int8, 1 in float32.
        algorithm: ``rtn`` or ``k_quant``. Weights of ours take the place of the former's: it is the
            one whose tensors are named alike in graph and embedding.
    """

    execution_provider: str = "cpu"
    precision: str = "int4"
    block_size: int = 64
    head_bits: int = 8
    accuracy_level: int = 4
    algorithm: str = "rtn"

    def arguments(self) -> list[str]:
        """Return the builder's extra options."""
        if self.precision == "fp16":
            return [_WHOLE_CACHE]
        options = [
            _WHOLE_CACHE,
            f"block_size={self.block_size}",
            f"accuracy_level={self.accuracy_level}",
            f"algo_config={self.algorithm}",
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
        BuildFailed: It does not build this model.
        EngineError: It was killed, or found no room.
    """
    precision = (
        "fp32"
        if options.precision == "fp16" and options.execution_provider == "cpu"
        else options.precision
    )
    with builder_input(model_dir, out.with_name(f"{out.name}.input")) as folder:
        command = [sys.executable, "-m", "onnxruntime_genai.models.builder"]
        command += ["-m", str(folder), "-o", str(out), "-p", precision]
        command += ["-e", options.execution_provider, "-c", str(out.parent / "cache")]
        command += ["--extra_options", *options.arguments()]
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - fixed
    if done.returncode or not (out / GRAPH).exists():
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        kind = EngineError if is_passing(done.returncode, last) else BuildFailed
        raise kind(f"onnxruntime-genai cannot build {model_dir.name}: {last}")


def put_weights(folder: Path, rounded: Mapping[str, Rounded]) -> int:
    """Replace the weights of a built graph by ours, where both have the same grid.

    Args:
        folder: What ``build`` made.
        rounded: Weights by the names of their modules (``model.layers.0.self_attn.q_proj``); one
            of low rank has two, with ``.down`` and ``.up`` behind its name.

    Returns:
        How many products of the graph got theirs.
    """
    model = onnx.load(str(folder / GRAPH))
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes: list[onnx.NodeProto] = []
    num_put = 0
    for node in model.graph.node:
        names = modules_of(node.name) if node.op_type == "MatMulNBits" else ()
        parts = [rounded[name] for name in names if name in rounded]
        ups = [rounded[f"{name}.up"] for name in names if f"{name}.up" in rounded]
        made = [node]
        if names and len(parts) == len(names):
            replace_weights(node, tensors, joined(parts))
        elif names and len(ups) == len(names):
            made, new = split_product(node, _down_of(names[0], rounded), joined(ups))
            for name in node.input[1:]:
                model.graph.initializer.remove(tensors.pop(name))
            model.graph.initializer.extend(new)
        else:
            nodes.append(node)
            continue
        nodes += made
        num_put += 1
    put_nodes(model, nodes)
    quantise_embedding(model)
    _save(model, folder)
    return num_put


def shrink_embedding(folder: Path) -> None:
    """Bring the embedding of a built graph to eight bits, where its head has eight."""
    model = onnx.load(str(folder / GRAPH))
    if quantise_embedding(model):
        _save(model, folder)


def modules_of(node: str) -> tuple[str, ...]:
    """Return the modules that a product of the graph computes, by its node's name; none of most."""
    found = _LAYER.match(node)
    if found is None:
        return ("lm_head",) if node.startswith("/lm_head/") else ()
    layer, part, name = found.groups()
    shorts = _PACKED.get(name, (name,))
    return tuple(f"model.layers.{layer}.{_PARTS[part]}.{short}_proj" for short in shorts)


def _down_of(name: str, rounded: Mapping[str, Rounded]) -> Rounded:
    """Return a module's first factor; those that have the same one keep it at the first of them."""
    shared = re.sub("[kv]_proj$", "q_proj", name)
    return rounded[f"{name}.down"] if f"{name}.down" in rounded else rounded[f"{shared}.down"]


def _save(model: onnx.ModelProto, folder: Path) -> None:
    (folder / DATA).unlink()
    onnx.save(
        model,
        str(folder / GRAPH),
        save_as_external_data=True,
        all_tensors_to_one_file=True,
        location=DATA,
        size_threshold=1024,
    )
