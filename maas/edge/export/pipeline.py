"""One export, from weights to a signed bundle. Runs in a process of its own: it loads torch."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from maas.core.errors import BuildFailed, BundleRefused, CapabilityMissing, EngineError
from maas.edge.export.architectures import check_weights
from maas.edge.export.build import PROVIDERS, BuildOptions, build
from maas.edge.export.calibration import encode_prompts, write_rows
from maas.edge.export.encoder import make_encoder
from maas.edge.export.failures import is_passing
from maas.edge.export.finish import put_beside
from maas.edge.export.merge import merge_adapter
from maas.edge.export.offered import check_embedding
from maas.edge.export.quantise import Source, search
from maas.edge.export.runtime_adapters import (
    prove_adapters,
    put_adapters,
    take_adapters,
    with_adapters,
)
from maas.edge.export.smaller import graph_limit, shrink
from maas.edge.export.spec import ExportResult, ExportSpec, Progress
from maas.edge.quality.measure import Reference, kept_percent, likeness, measure, take_reference
from maas.edge.quality.scorers import OnnxScorer, TorchScorer
from maas.edge.quality.tasks import GOLDEN_PROMPTS, held_tasks
from maas.edge.runtime.bundle.archive import hash_file, pack
from maas.edge.runtime.bundle.manifest import ADAPTERS, Adapter, Manifest, Part
from maas.edge.runtime.bundle.signing import private_key_of
from maas.edge.runtime.engine.options import EngineOptions
from maas.edge.runtime.memory import memory_need

CALIBRATION_ROWS = 32
_ROLES = {
    **{"model.onnx": "model", "model.onnx.data": "weights", "tokenizer.json": "tokenizer"},
    **{"chat_template.jinja": "template", "receipt.json": "receipt"},
}
# What runs beside the weights: activations, the libraries, a short context.
Report = Callable[[Progress], None]


@dataclass
class _Original:
    """The model, loaded: as it was, and smaller once it was shrunk."""

    model_dir: Path
    model: Any
    tokenizer: Any

    def encode(self, text: str) -> list[int]:
        """Return a text's tokens."""
        return self.tokenizer(text).input_ids

    def scorer(self) -> TorchScorer:
        """Return it as one side of a comparison."""
        eos = self.model.generation_config.eos_token_id
        return TorchScorer(self.model, frozenset(eos if isinstance(eos, list) else [eos]))


@dataclass(frozen=True)
class _Proved:
    """A graph, and what it keeps.

    Attributes:
        model_dir: Where tokenizer and template are.
        receipt: ``receipt.json``.
        summary: The part of it that the manifest has.
    """

    folder: Path
    model_dir: Path
    receipt: dict[str, Any]
    summary: dict[str, Any]


def run(spec: ExportSpec, report: Report) -> ExportResult:
    """Make a bundle.

    Args:
        spec: What is wanted.
        report: Told how far it is.

    Raises:
        BundleRefused: It keeps too little of the original.
        CapabilityMissing: This combination cannot be made, or proved, here.
        BuildFailed: No graph can be made of the model.
        EngineError: What builds or measures was killed.
        DiskFull: No room.
        ConfigError: The key for signing is none.
    """
    signing_key = private_key_of(spec.signing_key.get_secret_value())
    _check(spec)
    if spec.num_threads:
        torch.set_num_threads(spec.num_threads)
    spec.work_dir.mkdir(parents=True, exist_ok=True)
    proved = _prove_encoder(spec, report) if spec.task == "embed" else _prove(spec, report)
    score = proved.summary["score_percent"]
    if proved.summary["verdict"] == "refused":
        raise BundleRefused(
            f"the bundle keeps {score:.1f} % of the original's score and "
            f"{spec.quality.min_score_percent:.0f} % are asked for: take a higher precision, or "
            "force it"
        )
    folder = proved.folder
    put_beside(proved.model_dir, folder, max_model_len=spec.max_model_len)
    (folder / "receipt.json").write_text(json.dumps(proved.receipt, indent=1), encoding="utf-8")
    report(Progress(phase="cost", percent=90, message="measuring speed and memory"))
    cost = _cost(folder, spec.num_threads)
    report(Progress(phase="packing", percent=97, message="packing and signing"))
    manifest = _manifest(spec, folder, proved.summary, cost)
    made = pack(folder, manifest, signing_key, spec.out_path)
    _check_size(spec)
    shutil.rmtree(spec.work_dir, ignore_errors=True)
    return ExportResult(
        bundle_path=spec.out_path, bundle_id=made.bundle_id, manifest=msgspec.to_builtins(made)
    )


def _prove(spec: ExportSpec, report: Report) -> _Proved:
    original = _load(spec, report)
    report(Progress(phase="reference", percent=5, message="asking the original"))
    reference = _reference(original)
    taken = take_adapters(
        spec.adapters, original.model, lambda m: _reference(replace(original, model=m)), report
    )
    folder = spec.work_dir / "bundle"
    # Written once, and only where something needs it.
    rows = cache(lambda: _calibrate(spec, original, report))
    limit, shrunk, lost = graph_limit(spec, original.model_dir), None, 0.0
    if spec.shrink is not None:
        shrunk = shrink(
            spec.shrink, original.model, original.model_dir, rows(), spec=spec, report=report
        )
        original.model_dir = shrunk.model_dir
        lost = likeness(reference, original.scorer()).kl_divergence
    source = Source(
        original.model_dir,
        original.model,
        rows,
        is_low_rank=shrunk is not None and shrunk.is_low_rank,
        max_size_bytes=limit,
        lost=lost,
        score=lambda graph: kept_percent(reference, graph, original.encode),
    )
    tried = _make_graph(spec, source, reference, folder, report)
    if taken:
        put_adapters(folder, taken, original.model)
    report(Progress(phase="quality", percent=80, message="comparing with the original"))
    proof = measure(
        reference,
        OnnxScorer(folder, EngineOptions(num_threads=spec.num_threads)),
        original.encode,
        min_score_percent=spec.quality.min_score_percent,
        goal_percent=spec.quality.goal_percent,
        force=spec.quality.force,
        max_kl_divergence=spec.quality.max_kl_divergence,
    )
    receipt = {"quality": msgspec.to_builtins(proof), "search": tried, "seed": spec.seed}
    summary = {
        "score_percent": proof.score_percent,
        "greedy_agreement": proof.greedy_agreement,
        "perplexity_ratio": proof.perplexity_ratio,
        "goal_percent": proof.goal_percent,
        "below_goal": proof.below_goal,
        "verdict": proof.verdict,
    }
    proofs = prove_adapters(folder, taken, spec, original.encode)
    done = None if shrunk is None else shrunk.receipt | {"kl_divergence": lost}
    receipt, summary = with_adapters(receipt | {"shrink": done}, summary, proofs)
    return _Proved(folder, original.model_dir, receipt, summary)


def _check_size(spec: ExportSpec) -> None:
    """Refuse a bundle that is larger than was asked for."""
    size = spec.out_path.stat().st_size
    wanted = None if spec.shrink is None else spec.shrink.target_size_bytes
    if wanted is not None and size > wanted:
        spec.out_path.unlink()
        raise BundleRefused(
            f"the bundle takes {size} bytes and {wanted} are asked for", param="target_size_bytes"
        )


def _prove_encoder(spec: ExportSpec, report: Report) -> _Proved:
    folder = spec.work_dir / "bundle"
    proof = make_encoder(spec, folder, report)
    summary = {
        "score_percent": proof.score_percent,
        "mean_cosine": proof.mean_cosine,
        "verdict": proof.verdict,
    }
    return _Proved(folder, spec.model_dir, {"quality": msgspec.to_builtins(proof)}, summary)


def _check(spec: ExportSpec) -> None:
    if spec.task == "generate":
        check_weights(spec.model_dir, spec.base_model_id)
    else:
        check_embedding(spec.base_model_id, spec.precision, spec.quality)
    if spec.task == "embed" and (spec.shrink is not None or spec.adapter_dir is not None):
        raise CapabilityMissing("models of embeddings are neither shrunk nor merged")
    if spec.adapters and (spec.task == "embed" or spec.shrink is not None):
        raise CapabilityMissing(
            "adapters at run time need the base as it was: merge them, or do not shrink it",
            param="adapter_mode",
        )
    if spec.precision == "fp16" and spec.shrink is not None and spec.shrink.method != "prune":
        raise CapabilityMissing(
            "fp16 with lower ranks: they are put into graphs of int4 and int8 only; prune instead",
            param="precision",
        )
    if spec.precision == "fp16" and spec.target != "cuda":
        raise CapabilityMissing(
            f"fp16 on target {spec.target}: onnxruntime has no fp16 products for processors; take "
            "int8, which keeps the score and is faster",
            param="precision",
        )
    if spec.target == "cuda" and not torch.cuda.is_available():
        raise CapabilityMissing(
            "target cuda: a bundle is proved where it is made, and this machine has no GPU",
            param="target",
        )


def _load(spec: ExportSpec, report: Report) -> _Original:
    model_dir = spec.model_dir
    if spec.adapter_dir is not None:
        report(Progress(phase="merging", percent=1, message="merging the adapter"))
        model_dir = merge_adapter(spec.model_dir, spec.adapter_dir, spec.work_dir / "merged")
    report(Progress(phase="loading", percent=2, message=f"loading {spec.model_id}"))
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.bfloat16).eval()
    return _Original(model_dir, model, tokenizer)


def _reference(original: _Original) -> Reference:
    texts = encode_prompts(original.tokenizer, GOLDEN_PROMPTS)
    has_chat = bool(original.tokenizer.chat_template)
    prompts = [original.tokenizer(t, add_special_tokens=not has_chat).input_ids for t in texts]
    return take_reference(original.scorer(), held_tasks(), prompts, original.encode)


def _calibrate(spec: ExportSpec, original: _Original, report: Report) -> Tensor:
    report(Progress(phase="calibrating", percent=15, message="writing calibration text"))
    return write_rows(
        original.model,
        original.tokenizer,
        num_rows=CALIBRATION_ROWS,
        seed=spec.seed,
        tell=lambda share: report(Progress(phase="calibrating", percent=15 + 15 * share)),
    )


def _make_graph(
    spec: ExportSpec, source: Source, reference: Reference, folder: Path, report: Report
) -> list[dict[str, Any]]:
    if spec.precision == "fp16":
        report(Progress(phase="building", percent=40))
        build(source.model_dir, folder, BuildOptions(PROVIDERS[spec.target], "fp16"))
        return []
    tried = search(
        source,
        reference,
        folder,
        spec=spec,
        tell=lambda share, what: report(
            Progress(phase="quantising", percent=40 + 40 * share, message=what)
        ),
    )
    return [item.plain() for item in tried]


def _cost(folder: Path, num_threads: int) -> dict[str, Any]:
    """Measure in a process of its own: this one's memory is torch's."""
    command = [sys.executable, "-P", "-m", "maas.edge.runtime.bench", str(folder)]
    done = subprocess.run(  # noqa: S603 - our own module
        [*command, "--threads", str(num_threads)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        kind = EngineError if is_passing(done.returncode, last) else BuildFailed
        raise kind(f"the bundle does not run: {last}")
    return json.loads(done.stdout)


def _manifest(
    spec: ExportSpec, folder: Path, summary: dict[str, Any], cost: dict[str, Any]
) -> Manifest:
    paths = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    parts = tuple(
        Part(name, (folder / name).stat().st_size, hash_file(folder / name), _role(name))
        for name in paths
    )
    # With the flags that maas-edge serve has by default.
    need = memory_need(
        cost["ram_model_bytes"], cost["kv_bytes_per_token"], spec.max_model_len, EngineOptions()
    )
    return Manifest(
        schema_version=1,
        bundle_id="",
        name=spec.name,
        model_id=spec.model_id,
        base_model_id=spec.base_model_id,
        created_at=spec.created_at,
        precision=spec.precision,
        target=spec.target,
        task=spec.task,
        licence=spec.licence,
        lineage=_lineage(spec),
        parts=parts,
        adapters=tuple(Adapter(a.name, f"{ADAPTERS}/{a.name}") for a in spec.adapters),
        ram_required_bytes=need.total_bytes,
        max_model_len=spec.max_model_len,
        tool_call_parser=spec.tool_call_parser,
        cost_card=cost,
        receipt=summary,
        marks=_marks(summary),
    )


def _marks(summary: dict[str, Any]) -> tuple[str, ...]:
    found = {
        "forced": summary["verdict"] == "forced",
        "below_goal": summary.get("below_goal", False),
    }
    return tuple(name for name, is_so in found.items() if is_so)


def _lineage(spec: ExportSpec) -> dict[str, Any]:
    adapters = {adapter.name: adapter.lineage for adapter in spec.adapters}
    return {**spec.lineage, "adapters": adapters} if adapters else spec.lineage


def _role(name: str) -> Any:
    return "adapter" if name.startswith(f"{ADAPTERS}/") else _ROLES.get(name, "config")
