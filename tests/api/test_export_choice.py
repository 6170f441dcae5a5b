"""What an export is made of: adapters merged or kept, whole models, aliases, other people's."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from maas.catalog import machine
from maas.cli.main import app
from maas.core.errors import ConfigError
from maas.core.ids import new_id
from maas.finetune.whole_weights import keep_weights
from maas.store.key_terms import KeyTerms
from tests.api.conftest import RunningGateway
from tests.api.yard import BASE, Yard, open_yard
from tests.fakes.adapters import tuned_model, whole_model


@pytest.fixture
def yard(gateway: RunningGateway, smollm2_dir: Path) -> Iterator[Yard]:
    with open_yard(gateway, smollm2_dir) as opened:
        yield opened


def refused(yard: Yard, **fields: object) -> tuple[int, str]:
    answer = yard.client.post("/v1/exports", json={"model": BASE, **fields})
    assert answer.status_code >= 400, answer.text
    return answer.status_code, answer.json()["error"]["param"]


def test_adapters_at_run_time_are_parts_with_names_and_lineage(yard: Yard) -> None:
    one, other = yard.tuned(), yard.tuned()
    export = yard.made(adapter_mode="runtime", adapters=[one.id, other.id])
    assert (export["status"], export["model"]) == ("succeeded", BASE)
    names = {model.id: model.id.rpartition(":")[2] for model in (one, other)}
    assert export["adapters"] == {name: model for model, name in names.items()}
    (spec,) = yard.asked
    assert spec.adapter_dir is None
    assert [a.name for a in spec.adapters] == sorted(names.values())
    lineage = {a.lineage["model"]: a.lineage for a in spec.adapters}
    assert lineage[one.id]["adapter_sha256"] == one.adapter_id
    assert lineage[other.id]["licence"] == {}


def test_a_tuned_model_at_run_time_is_its_base_with_it_as_an_adapter(yard: Yard) -> None:
    tuned = yard.tuned()
    export = yard.made(model=tuned.id, adapter_mode="runtime")
    assert (export["model"], list(export["adapters"].values())) == (BASE, [tuned.id])


def test_one_adapter_beside_its_base_is_merged(yard: Yard) -> None:
    tuned = yard.tuned()
    export = yard.made(adapters=[tuned.id])
    assert (export["model"], export["adapters"]) == (tuned.id, {})
    assert yard.asked[0].adapter_dir is not None


def test_an_alias_is_what_it_stands_for(yard: Yard) -> None:
    tuned, name = yard.tuned(), new_id("alias")
    yard.gateway.store.aliases.point(name, tuned.id)
    try:
        assert yard.export(model=name)["model"] == tuned.id
        kept = yard.export(adapter_mode="runtime", adapters=[name])
        assert list(kept["adapters"].values()) == [tuned.id]
    finally:
        yard.gateway.store.aliases.remove(name)


def test_an_alias_of_another_projects_model_is_not_there(yard: Yard) -> None:
    model = tuned_model(yard.gateway.store, yard.gateway.project_id, base=BASE)
    name = new_id("alias")
    yard.gateway.store.aliases.point(name, model.id)
    try:
        assert refused(yard, model=name) == (404, "model")
        assert refused(yard, adapters=[name]) == (404, "adapters")
    finally:
        yard.gateway.store.aliases.remove(name)


def test_a_model_tuned_whole_is_exported_from_its_own_weights(yard: Yard, tmp_path: Path) -> None:
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "w" / "config.json").write_text('{"dtype": "bfloat16"}')
    weights = keep_weights(yard.blobs, tmp_path / "w")
    store = yard.gateway.store
    model = whole_model(store, yard.project_id, base=BASE)
    store.tuned_models.add(
        own := replace(model, id=f"{model.id}x", weights_key=f"weights/{weights}")
    )
    assert yard.made(model=own.id)["status"] == "succeeded"
    (spec,) = yard.asked
    assert (spec.model_dir / "model.safetensors").read_bytes() == b"weights"
    assert spec.lineage["weights_sha256"] == weights
    assert refused(yard, model=own.id, adapter_mode="runtime") == (400, "model")
    assert refused(yard, adapters=[own.id]) == (400, "adapters")


def test_what_does_not_go_together_is_refused_by_name(yard: Yard) -> None:
    one, other = yard.tuned().id, yard.tuned().id
    shrink = {"target_parameters": 100_000_000}
    for fields, param in (
        ({"adapters": [one, other]}, "adapters"),
        ({"model": one, "adapters": [other]}, "adapters"),
        ({"adapter_mode": "runtime"}, "adapters"),
        ({"adapter_mode": "runtime", "adapters": [one, one]}, "adapters"),
        ({"adapter_mode": "runtime", "adapters": [one], "shrink": shrink}, "adapter_mode"),
        ({"adapters": [BASE]}, "adapters"),
        ({"shrink": {**shrink, "recover_s": 1e6}}, "shrink"),
        ({"model": "all-minilm-l6-v2", "shrink": shrink}, "shrink"),
        *(
            ({"model": "all-minilm-l6-v2", "quality": {name: value}}, f"quality.{name}")
            for name, value in (
                *(("max_kl_divergence", 0.1), ("max_attempts", 2), ("goal_percent", 90)),
            )
        ),
        (
            {"model": "all-minilm-l6-v2", "target": "cuda", "precision": "fp16"},
            "precision",
        ),
        ({"model": "glm-4-9b-chat"}, "model"),
        ({"model": "baichuan2-7b-chat"}, "model"),
        ({"precision": "fp16"}, "precision"),
        ({"target": "mobile", "precision": "fp16"}, "precision"),
        (
            {"target": "cuda", "precision": "fp16", "shrink": {**shrink, "method": "low_rank"}},
            "shrink",
        ),
    ):
        assert refused(yard, **fields) == (400, param), fields
    assert yard.client.get("/v1/exports").json()["data"] == []


def test_budgets_that_are_no_numbers_are_refused(yard: Yard, tmp_path: Path) -> None:
    for number in ("Infinity", "NaN", "0"):
        body = f'{{"model": "{BASE}", "quality": {{"max_kl_divergence": {number}}}}}'
        assert yard.client.post("/v1/exports", content=body).status_code == 400, number
    for flag, number in (("--max-divergence", "0"), ("--max-divergence", "nan")):
        done = CliRunner().invoke(app, ["export", BASE, "--out", str(tmp_path / "m"), flag, number])
        assert isinstance(done.exception, ConfigError), number
        assert "max_kl_divergence" in done.exception.message
    assert not yard.asked


def test_a_machine_without_a_gpu_makes_nothing_for_one(
    yard: Yard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "_probe_gpus", lambda: ())
    assert refused(yard, target="cuda") == (400, "target")
    monkeypatch.setattr(machine, "_probe_gpus", lambda: (machine.Gpu("A100", 40 << 30),))
    assert yard.made(target="cuda", precision="fp16")["status"] == "succeeded"
    assert [(spec.target, spec.precision) for spec in yard.asked] == [("cuda", "fp16")]


@pytest.mark.parametrize("precision", ["int4", "int8"])
@pytest.mark.parametrize("target", ["cpu", "mobile"])
def test_target_and_precision_reach_the_process(yard: Yard, target: str, precision: str) -> None:
    export = yard.made(target=target, precision=precision)
    assert (export["status"], export["name"]) == ("succeeded", f"{BASE}-{precision}")
    assert [(spec.target, spec.precision) for spec in yard.asked] == [(target, precision)]


def test_shrinking_and_the_quality_budget_reach_the_process(yard: Yard) -> None:
    quality = {"min_score_percent": 91.5, "goal_percent": 99.0, "force": True}
    shrink = {"target_parameters": 120_000_000, "recover_s": 17.0}
    export = yard.made(shrink=shrink, quality=quality)
    assert export["shrink"]["target_parameters"] == 120_000_000
    (spec,) = yard.asked
    assert spec.shrink is not None
    assert (spec.shrink.target_parameters, spec.shrink.recover_s) == (120_000_000, 17.0)
    assert (spec.quality.min_score_percent, spec.quality.force) == (91.5, True)


def test_the_command_sends_all_of_it(yard: Yard, tmp_path: Path) -> None:
    there = ["--url", yard.gateway.url, "--key", yard.key, "--json"]
    more = ["--adapter", "nobody", "--adapter-mode", "runtime", "--target-parameters", "5"]
    done = CliRunner().invoke(app, ["export", BASE, "--out", str(tmp_path / "m"), *there, *more])
    assert done.exit_code == 1
    assert "nobody" in str(done.exception)
    assert not yard.asked, "nothing is made here"
    bad = CliRunner().invoke(
        app, ["export", BASE, "--out", str(tmp_path / "m"), *there, "--adapter", str(tmp_path)]
    )
    assert "without the platform" in str(bad.exception)


def test_a_key_of_one_model_exports_no_other(yard: Yard) -> None:
    tuned = yard.tuned()
    _, key = yard.gateway.store.keys.create(
        project_id=yard.project_id, name="narrow", terms=KeyTerms(models=("another",))
    )
    yard.gateway.wait_seen()
    headers = {"Authorization": f"Bearer {key}"}
    for body in ({"model": BASE}, {"model": tuned.id}):
        answer = yard.client.post("/v1/exports", json=body, headers=headers)
        assert answer.status_code == 403, answer.text
