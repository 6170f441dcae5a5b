"""Changes in a built graph what the builder cannot make: products of two factors, the embedding.

The operators are onnxruntime's own (``MatMulNBits``, ``GatherBlockQuantized``), so the folder
still loads wherever the builder's does.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from maas.core.errors import EngineError
from maas.edge.export.gptq import Grid, Rounded, round_nearest

_DOMAIN = "com.microsoft"
_EMBEDDING, _EMBEDDING_BITS = "model.embed_tokens.weight", 8
# Rows that are looked at to know whether head and embedding are one.
_NUM_COMPARED = 256
Array = NDArray[np.uint8] | NDArray[np.float32]


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


def joined(parts: Sequence[Rounded]) -> Rounded:
    """Return weights that have the same inputs as one."""
    values = torch.cat([part.values for part in parts])
    return Rounded(parts[0].grid, values, torch.cat([part.scales for part in parts]))


def replace_weights(node: NodeProto, tensors: dict[str, TensorProto], weight: Rounded) -> None:
    """Put a weight into a ``MatMulNBits`` of the same grid."""
    packed, scales = _arrays(weight)
    _replace(tensors[node.input[1]], packed)
    old = tensors[node.input[2]]
    _replace(old, scales.reshape(tuple(old.dims)))


def split_product(
    node: NodeProto, down: Rounded, up: Rounded
) -> tuple[list[NodeProto], list[TensorProto]]:
    """Return the two products that stand for one, and their weights.

    Args:
        node: A ``MatMulNBits``.
        down: Shape (rank, inputs).
        up: Shape (outputs, rank).
    """
    between = f"{node.name}/down/output_0"
    level = _attribute(node, "accuracy_level")
    nodes: list[NodeProto] = []
    tensors: list[TensorProto] = []
    for part, weight, source, target in (
        ("down", down, node.input[0], between),
        ("up", up, between, node.output[0]),
    ):
        name = f"{node.name}/{part}"
        names = [f"{name}/weight", f"{name}/scales"]
        arrays = zip(_arrays(weight), names, strict=True)
        tensors += [numpy_helper.from_array(array, to) for array, to in arrays]
        made = helper.make_node(
            "MatMulNBits",
            [source, *names],
            [target],
            name,
            domain=_DOMAIN,
            K=weight.values.shape[1],
            N=weight.values.shape[0],
            bits=weight.grid.bits,
            block_size=weight.grid.block_size,
            accuracy_level=level,
        )
        nodes.append(made)
    return nodes, tensors


def quantise_embedding(model: onnx.ModelProto) -> bool:
    """Look tokens up in eight bits where the builder left the embedding in float32.

    A head of eight bits that has the embedding's weights is looked up itself: they are there once.

    Returns:
        Whether anything was changed.
    """
    nodes = model.graph.node
    lookup = next((n for n in nodes if n.op_type == "Gather" and n.input[0] == _EMBEDDING), None)
    head = next(
        (n for n in nodes if n.op_type == "MatMulNBits" and n.name.startswith("/lm_head/")), None
    )
    if lookup is None or head is None:
        return False
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    embedding = numpy_helper.to_array(tensors[_EMBEDDING])
    block_size = _attribute(head, "block_size")
    if embedding.shape[1] % block_size or embedding.dtype != np.float32:
        return False
    if _is_same(embedding, head, tensors):
        table, scales = head.input[1], head.input[2]
    else:
        table, scales = f"{_EMBEDDING}_Q8", f"{_EMBEDDING}_scales"
        rounded = round_nearest(
            torch.from_numpy(embedding.copy()), Grid(_EMBEDDING_BITS, block_size)
        )
        for name, array in zip((table, scales), _arrays(rounded), strict=True):
            model.graph.initializer.append(numpy_helper.from_array(array, name))
    made = _lookup(lookup, table, scales, embedding.shape, block_size)
    kept = [item for node in nodes for item in (made if node is lookup else [node])]
    model.graph.initializer.remove(tensors[_EMBEDDING])
    model.graph.initializer.extend(_shapes(embedding.shape, block_size))
    put_nodes(model, kept)
    return True


def put_nodes(model: onnx.ModelProto, nodes: Sequence[NodeProto]) -> None:
    """Replace a graph's nodes."""
    copies: list[NodeProto] = []
    for node in nodes:
        copies.append(NodeProto())
        copies[-1].CopyFrom(node)
    del model.graph.node[:]
    model.graph.node.extend(copies)


def _lookup(
    gather: NodeProto, table: str, scales: str, shape: tuple[int, ...], block_size: int
) -> list[NodeProto]:
    """Return the nodes that look up rows of weights that are packed for products."""
    flat, flat_scales = f"{gather.name}/table", f"{gather.name}/scales"
    to_table, to_scales = _shapes(shape, block_size)
    return [
        helper.make_node("Reshape", [table, to_table.name], [flat], f"{gather.name}/Reshape"),
        helper.make_node(
            "Reshape", [scales, to_scales.name], [flat_scales], f"{gather.name}/ReshapeScales"
        ),
        helper.make_node(
            "GatherBlockQuantized",
            [flat, gather.input[1], flat_scales],
            [gather.output[0]],
            f"{gather.name}BlockQuantized",
            domain=_DOMAIN,
            bits=_EMBEDDING_BITS,
            block_size=block_size,
            gather_axis=0,
            quantize_axis=1,
        ),
    ]


def _shapes(shape: tuple[int, ...], block_size: int) -> tuple[TensorProto, TensorProto]:
    rows, width = shape
    return (
        numpy_helper.from_array(np.array([rows, width], np.int64), f"{_EMBEDDING}/shape"),
        numpy_helper.from_array(
            np.array([rows, width // block_size], np.int64), f"{_EMBEDDING}/scales_shape"
        ),
    )


def _is_same(embedding: Array, head: NodeProto, tensors: dict[str, TensorProto]) -> bool:
    """Say whether a head's weights are the embedding's, rounded."""
    rows = slice(None, None, max(1, len(embedding) // _NUM_COMPARED))
    values = numpy_helper.to_array(tensors[head.input[1]])
    scales = numpy_helper.to_array(tensors[head.input[2]])
    if _attribute(head, "bits") != _EMBEDDING_BITS or len(head.input) > 3:
        return False
    if len(values) != len(embedding):
        return False
    scale = scales.reshape(len(embedding), -1)[rows][..., None]
    theirs = (values[rows].astype(np.float32) - 128) * scale
    ours = embedding[rows].reshape(theirs.shape)
    # A value at the grid's end may be cut by one.
    return bool((np.abs(theirs - ours) <= 1.01 * np.abs(scale) + 1e-6).all())


def _arrays(weight: Rounded) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    grid = weight.grid
    packed = pack(weight.values.numpy(), grid.bits, grid.block_size)
    return packed, weight.scales.numpy().astype(np.float32)


def _attribute(node: NodeProto, name: str) -> Any:
    return next(
        (helper.get_attribute_value(item) for item in node.attribute if item.name == name), 0
    )


def _replace(tensor: TensorProto, array: Array) -> None:
    if tuple(tensor.dims) != array.shape:
        raise EngineError(f"{tensor.name}: shape {tuple(tensor.dims)}, and ours is {array.shape}")
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
