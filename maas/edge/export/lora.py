"""Run-time adapters: a graph that has inputs for them, and their files.

Beside each product ``y = x @ W`` of a module that any adapter changes the graph gets
``y + x @ A @ B``. A and B are initialisers that a run may override, empty by default, of any rank:
without an adapter nothing is added, and with one onnxruntime puts its tensors in their place.
genai's builder has ``adapter_path``, but writes an adapter into the graph as constants, with
modules unpacked: one graph an adapter, and a slower base.

Source: "LoRA" (Hu et al., 2021, section 4.1); onnxruntime's adapter format.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor

from maas.core.errors import AdapterRefused
from maas.edge.export.build import GRAPH, modules_of
from maas.edge.runtime.bundle.manifest import ADAPTER_FILE

# Of MatMulNBits the scales, and of a plain product the weight, say what is computed in.
_NAME = "default"
_TYPED_INPUT = {"MatMulNBits": 2, "MatMul": 1}


@dataclass(frozen=True)
class LoraModule:
    """What an adapter adds to one module.

    Attributes:
        a: Shape (rank, inputs).
        b: Shape (outputs, rank), with the adapter's scale in it.
    """

    a: NDArray[np.float32]
    b: NDArray[np.float32]


Adapter = Mapping[str, LoraModule]


@dataclass(frozen=True)
class Site:
    """A product of the graph that has inputs for adapters.

    Attributes:
        name: Of its inputs, without ``.lora_A`` and ``.lora_B``.
        modules: That the product computes, in the order of its outputs.
        dtype: Of the inputs.
    """

    name: str
    modules: tuple[str, ...]
    dtype: np.dtype[Any]


def read_adapter(model: Any, name: str, folder: Path) -> tuple[PeftModel, Adapter]:
    """Put an adapter on a model, and return what it adds to which module.

    Args:
        model: From transformers; PEFT changes its modules until ``unload``.
        name: Of the adapter.
        folder: ``adapter_config.json`` and ``adapter_model.safetensors``.

    Raises:
        AdapterRefused: It does not fit, or is more than products beside the model's own.
    """
    try:
        tuned = PeftModel.from_pretrained(model, str(folder)).eval()
    except (ValueError, RuntimeError, KeyError, OSError, TypeError) as error:
        raise AdapterRefused(f"adapter {name!r} does not fit the model: {error}") from error
    config = tuned.peft_config[_NAME]
    for field, wanted in (("use_dora", False), ("bias", "none"), ("modules_to_save", None)):
        if getattr(config, field, wanted) not in {wanted, None}:
            raise AdapterRefused(
                f"adapter {name!r} has {field}: merge it, at run time only products are added"
            )
    found: dict[str, LoraModule] = {}
    base: Any = tuned.get_base_model()
    for path, module in base.named_modules():
        if isinstance(module, LoraLayer) and _NAME in module.lora_A:
            sides: list[Any] = [module.lora_A[_NAME], module.lora_B[_NAME]]
            scale = np.float32(module.scaling[_NAME])
            found[path] = LoraModule(_array(sides[0].weight), _array(sides[1].weight) * scale)
    if not found:
        raise AdapterRefused(f"adapter {name!r} changes no product of the model")
    return tuned, found


def add_inputs(folder: Path, adapters: Mapping[str, Adapter]) -> tuple[Site, ...]:
    """Give a built graph inputs for adapters, where any of them changes something.

    Raises:
        AdapterRefused: One changes a module that is no product of the graph.
    """
    wanted = {module for adapter in adapters.values() for module in adapter}
    # The weights stay where they are: they are not even read.
    model = onnx.load(str(folder / GRAPH), load_external_data=False)
    kinds = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    dims = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    sites: list[Site] = []
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        nodes.append(node)
        modules = modules_of(node.name) if node.op_type in _TYPED_INPUT else ()
        if wanted.isdisjoint(modules):
            continue
        kind = kinds[node.input[_TYPED_INPUT[node.op_type]]]
        num_inputs, num_outputs = _shape_of(node, dims)
        name = node.name.strip("/").replace("/", ".").rpartition(".")[0]
        for suffix, shape in ((".lora_A", (num_inputs, 0)), (".lora_B", (0, num_outputs))):
            _add_input(model.graph, f"{name}{suffix}", kind, shape)
        nodes += _beside(node, name)
        sites.append(Site(name, modules, helper.tensor_dtype_to_np_dtype(kind)))
    missing = sorted(wanted - {module for site in sites for module in site.modules})
    if missing:
        raise AdapterRefused(f"an adapter changes {missing[0]}: no product of the graph; merge it")
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    (folder / GRAPH).write_bytes(model.SerializeToString())
    return tuple(sites)


def write_adapter(
    out: Path, sites: Sequence[Site], adapter: Adapter, widths: Mapping[str, int]
) -> None:
    """Write an adapter as onnxruntime reads it.

    Args:
        out: A new folder.
        sites: Where the graph takes it.
        adapter: What it adds.
        widths: Outputs of each module of the sites.
    """
    values: dict[str, ort.OrtValue] = {}
    for site in sites:
        parts = [(module, adapter[module]) for module in site.modules if module in adapter]
        if not parts:
            continue
        starts = dict(zip(site.modules, _starts([widths[m] for m in site.modules]), strict=True))
        rank = sum(len(part.a) for _, part in parts)
        b = np.zeros((rank, sum(widths[module] for module in site.modules)), np.float32)
        row = 0
        for module, part in parts:
            # Modules that the graph computes in one product each have columns of their own.
            start, height = starts[module], len(part.a)
            b[row : row + height, start : start + len(part.b)] = part.b.T
            row += height
        a = np.concatenate([part.a.T for _, part in parts], axis=1)
        for suffix, array in ((".lora_A", a), (".lora_B", b)):
            plain = np.ascontiguousarray(array.astype(site.dtype))
            values[f"{site.name}{suffix}"] = ort.OrtValue.ortvalue_from_numpy(plain)
    written = ort.AdapterFormat()
    written.set_adapter_version(1)
    written.set_model_version(1)
    written.set_parameters(values)
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    # Its types ask for a PathLike, and its code takes text only.
    target: Any = str(out / ADAPTER_FILE)
    written.export_adapter(target)


def _array(weight: Tensor) -> NDArray[np.float32]:
    return weight.detach().float().cpu().numpy()


def _starts(widths: Sequence[int]) -> list[int]:
    return [sum(widths[:place]) for place in range(len(widths))]


def _shape_of(node: onnx.NodeProto, dims: Mapping[str, tuple[int, ...]]) -> tuple[int, int]:
    if node.op_type == "MatMul":
        num_inputs, num_outputs = dims[node.input[1]]
        return num_inputs, num_outputs
    sizes = {attribute.name: attribute.i for attribute in node.attribute}
    return int(sizes["K"]), int(sizes["N"])


def _add_input(graph: onnx.GraphProto, name: str, kind: int, shape: tuple[int, int]) -> None:
    empty = np.zeros(shape, helper.tensor_dtype_to_np_dtype(kind))
    graph.initializer.append(numpy_helper.from_array(empty, name))
    # A rank of its own for each product: adapters need not change all of them.
    open_shape = [size or f"{name.rpartition('.')[0]}.rank" for size in shape]
    graph.input.append(helper.make_tensor_value_info(name, kind, open_shape))


def _beside(node: onnx.NodeProto, name: str) -> list[onnx.NodeProto]:
    """Return the nodes that add ``x @ A @ B``; what read the product reads the sum."""
    total = node.output[0]
    node.output[0] = f"{total}/base"
    low, added = f"{name}/lora_A/output_0", f"{name}/lora_B/output_0"
    return [
        helper.make_node("MatMul", [node.input[0], f"{name}.lora_A"], [low], f"{name}/lora_A"),
        helper.make_node("MatMul", [low, f"{name}.lora_B"], [added], f"{name}/lora_B"),
        helper.make_node("Add", [node.output[0], added], [total], f"{name}/lora/Add"),
    ]
