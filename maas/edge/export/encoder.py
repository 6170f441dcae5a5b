"""Makes and proves the graph of a model of embeddings.

genai's builder knows decoders only; encoders go through torch's own exporter, and their products
are quantised by onnxruntime's quantiser.
"""

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer

from maas.core.errors import BuildFailed
from maas.edge.export.spec import ExportSpec, Progress
from maas.edge.quality.tasks import Item, held_tasks
from maas.edge.runtime.engine.embed import CONFIG, EmbedEngine
from maas.edge.runtime.engine.options import EngineOptions

BITS = {"int4": 4, "int8": 8}
_BLOCK_SIZE = 32


class EmbeddingReceipt(msgspec.Struct, frozen=True, kw_only=True):
    """What a bundle of embeddings keeps.

    Attributes:
        num_items: Questions; each looks for its own full sentence among all of them.
        num_original: That the original finds.
        num_bundle: That the bundle finds.
        mean_cosine: Between the two sides' embeddings of the same text.
        least_cosine: The smallest of them.
    """

    num_items: int
    num_original: int
    num_bundle: int
    score_percent: float
    mean_cosine: float
    least_cosine: float
    min_score_percent: float
    verdict: Literal["passed", "refused", "forced"]


class _Hidden(nn.Module):
    """An encoder with two inputs and one output."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the last hidden states, shape (rows, length, hidden size)."""
        return self._model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state


def make_encoder(
    spec: ExportSpec, folder: Path, report: Callable[[Progress], None]
) -> EmbeddingReceipt:
    """Make the graph of an encoder and compare it with the original.

    Args:
        spec: What is wanted.
        folder: A new folder for the graph.
        report: Told how far it is.

    Raises:
        BuildFailed: torch cannot export the architecture.
    """
    report(Progress(phase="loading", percent=5, message=f"loading {spec.model_id}"))
    tokenizer = AutoTokenizer.from_pretrained(spec.model_dir)
    model = AutoModel.from_pretrained(spec.model_dir, dtype=torch.float32).eval()
    items = held_tasks()
    texts = [*(item.context for item in items), *map(_answered, items)]
    tokens = [tokenizer(text).input_ids for text in texts]
    pooling = _pooling(spec.model_dir)
    report(Progress(phase="building", percent=20, message="exporting the graph"))
    folder.mkdir(parents=True)
    _export(_Hidden(model).eval(), folder, BITS[spec.precision], spec.max_model_len)
    config = {
        "pooling": pooling,
        "max_model_len": spec.max_model_len,
        "vocab_size": int(model.config.vocab_size),
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=1), encoding="utf-8")
    report(Progress(phase="quality", percent=60, message="comparing with the original"))
    engine = EmbedEngine(folder, EngineOptions(num_threads=spec.num_threads))
    ours, theirs = engine.embed(tokens), _original(model, tokens, pooling)
    return _compare(ours, theirs, spec)


def _answered(item: Item) -> str:
    return item.context + item.endings[item.answer]


def _pooling(model_dir: Path) -> str:
    """Return how hidden states become one, as sentence-transformers writes it."""
    path = model_dir / "1_Pooling" / "config.json"
    if not path.exists():
        return "mean"
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return "cls" if config.get("pooling_mode_cls_token") else "mean"


def _export(model: nn.Module, folder: Path, bits: int, max_length: int) -> None:
    rows, length = torch.export.Dim("rows"), torch.export.Dim("length", max=max_length)
    shapes = {0: rows, 1: length}
    example = torch.ones(2, 8, dtype=torch.long)
    mask = torch.ones_like(example)
    # Padding in the example: a mask of ones alone would be left out of the graph.
    mask[1, 5:] = 0
    # It tells every node it looks at.
    logging.getLogger("onnxruntime.quantization").setLevel(logging.WARNING)
    try:
        program = torch.onnx.export(
            model,
            (example, mask),
            dynamo=True,
            input_names=["input_ids", "attention_mask"],
            output_names=["last_hidden_state"],
            dynamic_shapes=(shapes, shapes),
            verbose=False,
        )
    except torch.onnx.OnnxExporterError as error:
        raise BuildFailed(f"torch cannot export this encoder: {error}") from error
    if program is None:
        raise BuildFailed("torch cannot export this encoder")
    quantiser = MatMulNBitsQuantizer(
        program.model_proto, bits=bits, block_size=_BLOCK_SIZE, is_symmetric=True, accuracy_level=4
    )
    quantiser.process()
    # Its type says ModelProto; it wraps one.
    wrapped: Any = quantiser.model
    onnx.save(
        wrapped.model,
        str(folder / "model.onnx"),
        save_as_external_data=True,
        all_tensors_to_one_file=True,
        location="model.onnx.data",
        size_threshold=1024,
    )


@torch.no_grad()
def _original(model: nn.Module, tokens: Sequence[list[int]], pooling: str) -> NDArray[np.float32]:
    vectors: list[Tensor] = []
    for row in tokens:
        ids = torch.tensor([row])
        states = _Hidden(model)(ids, torch.ones_like(ids))[0]
        vectors.append(states[0] if pooling == "cls" else states.mean(0))
    return nn.functional.normalize(torch.stack(vectors), dim=-1).numpy()


def _compare(
    ours: NDArray[np.float32], theirs: NDArray[np.float32], spec: ExportSpec
) -> EmbeddingReceipt:
    num_items = len(ours) // 2
    found = [
        int(((side[:num_items] @ side[num_items:].T).argmax(1) == np.arange(num_items)).sum())
        for side in (ours, theirs)
    ]
    score = 100.0 * found[0] / max(found[1], 1)
    cosines = (ours * theirs).sum(1)
    is_good = score >= spec.quality.min_score_percent
    return EmbeddingReceipt(
        num_items=num_items,
        num_original=found[1],
        num_bundle=found[0],
        score_percent=score,
        mean_cosine=float(cosines.mean()),
        least_cosine=float(cosines.min()),
        min_score_percent=spec.quality.min_score_percent,
        verdict="passed" if is_good else "forced" if spec.quality.force else "refused",
    )
