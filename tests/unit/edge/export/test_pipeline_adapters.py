"""A whole export with an adapter at run time, of tiny weights: proved with it, or refused."""

from pathlib import Path

import pytest
import torch

from maas.core.errors import BundleRefused, CapabilityMissing
from maas.edge.export import runtime_adapters
from maas.edge.export.pipeline import run
from maas.edge.export.spec import (
    ExportResult,
    ExportSpec,
    QualityDemand,
    RuntimeAdapter,
    ShrinkDemand,
)
from maas.edge.quality.measure import measure
from maas.edge.runtime.bundle.archive import unpack
from maas.edge.runtime.engine.options import EngineOptions
from maas.edge.runtime.server.serve import open_served
from tests.contract.small_weights import write_adapter
from tests.fakes.bundles import SEED


def export(weights: Path, home: Path, *, min_score_percent: float, **more: object) -> ExportResult:
    adapter = write_adapter(home / "adapter", weights, r=4)
    spec = ExportSpec.model_validate(
        {
            "model_id": "m", "base_model_id": "m", "model_dir": weights, "precision": "int8",
            "name": "m", "work_dir": home / "work", "out_path": home / "m.maas",
            "signing_key": SEED, "max_model_len": 512, "licence": {}, "created_at": 0.0,
            "num_threads": 1, "quality": QualityDemand(min_score_percent=min_score_percent),
            "adapters": (RuntimeAdapter(name="x", folder=adapter, lineage={"job": "j"}),),
            **more,
        }
    )  # fmt: skip
    return run(spec, lambda _: None)


def test_a_model_that_is_pruned_takes_no_adapters(tiny_weights: Path, tmp_path: Path) -> None:
    with pytest.raises(CapabilityMissing, match="merge them"):
        export(
            tiny_weights, tmp_path, min_score_percent=0, shrink=ShrinkDemand(target_parameters=9)
        )


@pytest.mark.parametrize(
    ("target", "precision", "param"),
    [("cpu", "fp16", "precision"), ("mobile", "fp16", "precision"), ("cuda", "int4", "target")],
)
def test_what_cannot_be_proved_here_is_refused_before_anything_is_loaded(
    tiny_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target, precision, param
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(CapabilityMissing) as caught:
        export(tiny_weights, tmp_path, min_score_percent=0, target=target, precision=precision)
    assert caught.value.context["param"] == param
    assert not (tmp_path / "work").exists()


@pytest.mark.slow
def test_base_and_adapter_are_proved_and_named(tiny_weights: Path, tmp_path: Path) -> None:
    made = export(tiny_weights, tmp_path, min_score_percent=0)
    receipt = made.manifest["receipt"]
    assert (receipt["verdict"], receipt["adapters"]["x"]["verdict"]) == ("passed", "passed")
    # Its answers are not the base's: it was asked with the adapter, on both sides.
    assert receipt["adapters"]["x"]["greedy_agreement"] > 0.5
    assert made.manifest["lineage"]["adapters"] == {"x": {"job": "j"}}
    head = unpack(made.bundle_path, tmp_path / "out", None)
    served = open_served(
        tmp_path / "out", "m", EngineOptions(num_threads=1), head.manifest.adapters
    )
    served.engine.close()
    assert served.adapters == {"x"}


@pytest.mark.slow
def test_an_adapter_that_keeps_too_little_refuses_the_bundle_by_its_name(
    tiny_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What random weights keep is luck: of the adapter more is asked than any keeps.
    monkeypatch.setattr(
        runtime_adapters,
        "measure",
        lambda *asked, **terms: measure(*asked, **{**terms, "min_score_percent": 1e6}),
    )
    with pytest.raises(BundleRefused, match="with adapter x the bundle keeps"):
        export(tiny_weights, tmp_path, min_score_percent=0)
    assert not (tmp_path / "m.maas").exists()
