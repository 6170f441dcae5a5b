"""The run-time adapters of an export: read and asked before weights are rounded, put in after."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from maas.core.errors import BundleRefused
from maas.edge.export.lora import Adapter, add_inputs, read_adapter, write_adapter
from maas.edge.export.spec import ExportSpec, Progress, RuntimeAdapter
from maas.edge.quality.measure import Encode, QualityReceipt, Reference, measure
from maas.edge.quality.scorers import OnnxScorer
from maas.edge.runtime.bundle.manifest import ADAPTERS
from maas.edge.runtime.engine.options import EngineOptions

_ERRORS_ONLY = 3


@dataclass(frozen=True)
class Taken:
    """One adapter.

    Attributes:
        adapter: What it adds to which module.
        reference: What the original does with it.
    """

    name: str
    adapter: Adapter
    reference: Reference


def take_adapters(
    wanted: Sequence[RuntimeAdapter],
    model: Any,
    ask: Callable[[Any], Reference],
    report: Callable[[Progress], None],
) -> tuple[Taken, ...]:
    """Read adapters, and ask the original with each of them.

    Args:
        wanted: Which.
        model: The original, loaded; the same again afterwards.
        ask: Asks a model.
        report: Told how far it is.

    Raises:
        AdapterRefused: One does not fit.
    """
    taken: list[Taken] = []
    for item in wanted:
        report(Progress(phase="reference", percent=10, message=f"asking it with {item.name}"))
        tuned, adapter = read_adapter(model, item.name, item.folder)
        taken.append(Taken(item.name, adapter, ask(tuned.get_base_model())))
        tuned.unload()
    return tuple(taken)


def put_adapters(folder: Path, taken: Sequence[Taken], model: Any) -> None:
    """Give a graph inputs for adapters and put their files beside it.

    Args:
        folder: The graph's.
        taken: Adapters.
        model: The original, loaded.

    Raises:
        AdapterRefused: One changes a module that is no product of the graph.
    """
    sites = add_inputs(folder, {item.name: item.adapter for item in taken})
    widths = {
        module: int(model.get_submodule(module).out_features)
        for site in sites
        for module in site.modules
    }
    for item in taken:
        write_adapter(folder / ADAPTERS / item.name, sites, item.adapter, widths)
    path = folder / "genai_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    # onnxruntime warns of each input that a run may override; genai would print hundreds of lines.
    options = config["model"]["decoder"].setdefault("session_options", {})
    options["log_severity_level"] = _ERRORS_ONLY
    path.write_text(json.dumps(config, indent=1), encoding="utf-8")


def prove_adapters(
    folder: Path, taken: Sequence[Taken], spec: ExportSpec, encode: Encode
) -> dict[str, QualityReceipt]:
    """Compare a bundle with the original, both with each adapter.

    Raises:
        BundleRefused: One keeps too little.
    """
    proofs: dict[str, QualityReceipt] = {}
    for item in taken:
        options = EngineOptions(num_threads=spec.num_threads)
        proof = measure(
            item.reference,
            OnnxScorer(folder, options, adapter_dir=folder / ADAPTERS / item.name),
            encode,
            min_score_percent=spec.quality.min_score_percent,
            goal_percent=spec.quality.goal_percent,
            force=spec.quality.force,
        )
        if proof.verdict == "refused":
            raise BundleRefused(
                f"with adapter {item.name} the bundle keeps {proof.score_percent:.1f} % of the "
                f"original's score and {spec.quality.min_score_percent:.0f} % are asked for: take "
                "a higher precision, or force it"
            )
        proofs[item.name] = proof
    return proofs


def with_adapters(
    receipt: Mapping[str, Any], summary: Mapping[str, Any], proofs: Mapping[str, QualityReceipt]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return receipt and summary with what adapters keep; as they are where there are none."""
    if not proofs:
        return dict(receipt), dict(summary)
    plain = {name: msgspec.to_builtins(proof) for name, proof in proofs.items()}
    kept = ("score_percent", "greedy_agreement", "perplexity_ratio", "below_goal", "verdict")
    verdicts = {summary["verdict"], *(proof.verdict for proof in proofs.values())}
    told = {
        "adapters": {name: {key: proof[key] for key in kept} for name, proof in plain.items()},
        "below_goal": summary["below_goal"] or any(proof.below_goal for proof in proofs.values()),
        "verdict": "forced" if "forced" in verdicts else summary["verdict"],
    }
    return {**receipt, "adapters": plain}, {**summary, **told}
