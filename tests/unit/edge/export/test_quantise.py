"""The search: the first setting within the budget is taken, and all that was tried is told."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from pydantic import SecretStr
from transformers import AutoModelForCausalLM

from maas.core.errors import BundleRefused
from maas.edge.export import quantise
from maas.edge.export.build import DATA, GRAPH, BuildOptions, build, put_weights
from maas.edge.export.quantise import Setting, Source, Tried, search
from maas.edge.export.sizes import Sizes
from maas.edge.export.spec import ExportSpec, QualityDemand
from maas.edge.quality.measure import take_reference
from maas.edge.quality.scorers import OnnxScorer, TorchScorer
from maas.edge.runtime.engine.options import EngineOptions
from tests.fakes.bundles import SEED

ROWS = torch.randint(0, 256, (4, 64), generator=torch.Generator().manual_seed(0))
Build = Callable[[Path, Path, BuildOptions], None]
PROMPTS = [[72, 101, 108], [10, 20, 30, 40]]


def asked_for(tmp_path: Path, weights: Path, **quality: object) -> ExportSpec:
    return ExportSpec(
        model_id="tiny",
        base_model_id="tiny",
        model_dir=weights,
        name="tiny",
        precision="int8",
        work_dir=tmp_path,
        out_path=tmp_path / "out.maas",
        signing_key=SecretStr(SEED),
        max_model_len=512,
        licence={},
        quality=QualityDemand.model_validate(quality),
        num_threads=1,
        created_at=0.0,
    )


class Run:
    """A search on the tiny model, with few settings; what it asked for calibration is counted."""

    def __init__(self, tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.out = tmp_path / "bundle"
        self.num_calibrated = 0
        self._tmp_path, self._weights = tmp_path, weights
        settings = (Setting(64, 8, 8, "rtn"), Setting(32, 8, 8), Setting(32, 8, 8, "rtn", 1))
        monkeypatch.setitem(quantise.SETTINGS, "int8", settings)

    def __call__(
        self,
        *,
        max_size_bytes: int | None = None,
        lost: float = 0.0,
        scores: Sequence[float] | None = None,
        **quality: object,
    ) -> list[Tried]:
        model = AutoModelForCausalLM.from_pretrained(self._weights, dtype=torch.bfloat16).eval()
        scorer = TorchScorer(model, frozenset([257]))
        reference = take_reference(scorer, (), PROMPTS, lambda text: list(text.encode()))

        def rows() -> torch.Tensor:
            self.num_calibrated += 1
            return ROWS

        left = iter(scores or ())
        source = Source(
            self._weights,
            model,
            rows,
            max_size_bytes=max_size_bytes,
            lost=lost,
            score=None if scores is None else lambda _: next(left),
        )
        spec = asked_for(self._tmp_path, self._weights, **quality)
        return search(source, reference, self.out, spec=spec, tell=lambda _, __: None)

    def answer(self) -> list[list[int]]:
        return OnnxScorer(self.out, EngineOptions(num_threads=1)).greedy(PROMPTS, 4)


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """The builder, which makes each graph once: a search builds, a test a dozen times."""
    folder, made = tmp_path_factory.mktemp("graphs"), dict[BuildOptions, Path]()

    def build_once(model_dir: Path, out: Path, options: BuildOptions) -> None:
        if options not in made:
            made[options] = folder / str(len(made))
            build(model_dir, made[options], options)
        shutil.copytree(made[options], out)

    return build_once


@pytest.fixture
def run(tmp_path: Path, tiny_weights: Path, monkeypatch: pytest.MonkeyPatch, graphs: Build) -> Run:
    monkeypatch.setattr(quantise, "build", graphs)
    return Run(tmp_path, tiny_weights, monkeypatch)


def test_the_first_within_the_budget_is_taken_and_needs_no_calibration(run: Run) -> None:
    (tried,) = run(max_kl_divergence=5.0)
    assert tried.is_taken
    assert tried.setting == Setting(64, 8, 8, "rtn")
    assert tried.plain()["why"].endswith("within 5; the first that is")
    assert run.num_calibrated == 0
    assert run.answer()


def test_where_none_is_near_enough_the_nearest_is_taken_after_so_many_attempts(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(QualityDemand, "budget", property(lambda _: 1e-9))
    tried = run(max_attempts=2)
    assert len(tried) == 2
    first, second = (item.plain()["kl_divergence"] for item in tried)
    # A later one is slower: it must be nearer by a tenth.
    (taken,) = (item for item in tried if item.is_taken)
    assert taken is tried[second < 0.9 * first]
    assert taken.why.endswith("over 1e-09; the nearest for its speed")
    assert run.num_calibrated == 1
    assert run.answer()
    assert not run.out.with_name("bundle.kept").exists()


def test_a_budget_the_caller_named_is_kept_or_the_export_refused_unless_forced(run: Run) -> None:
    with pytest.raises(BundleRefused, match="no setting tried lies within 1e-09 nats"):
        run(max_kl_divergence=1e-9, max_attempts=1)
    assert run(max_kl_divergence=1e-9, max_attempts=1, force=True)[0].is_taken


@pytest.mark.parametrize(
    ("scores", "taken", "why"),
    [
        ([97.0, 98.5], 1, "within 5; the first that is"),
        (
            [96.0, 97.5, 97.0],
            1,
            "97.5 % of the score, under the goal of 98; the most that was kept",
        ),
        ([99.0], 0, "within 5; the first that is"),
    ],
)
def test_the_search_goes_on_for_the_goal_while_attempts_are_left_and_keeps_the_most(
    run: Run, scores: list[float], taken: int, why: str
) -> None:
    tried = run(max_kl_divergence=5.0, max_attempts=3, scores=scores)
    assert [item.score_percent for item in tried] == scores
    assert [item.is_taken for item in tried] == [place == taken for place in range(len(scores))]
    assert tried[taken].why.endswith(why)
    assert tried[taken].plain()["score_percent"] == scores[taken]
    assert run.answer()


def test_the_goal_is_not_searched_for_beyond_the_attempts(run: Run) -> None:
    (tried,) = run(max_kl_divergence=5.0, max_attempts=1, scores=[50.0])
    assert tried.is_taken


def test_what_shrinking_lost_is_not_held_against_quantising(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(QualityDemand, "budget", property(lambda _: 1e-9))
    (tried,) = run(lost=5.0)
    assert tried.why.endswith("within 5; the first that is")
    # A budget that was named is one to the original.
    assert len(run(lost=5.0, max_kl_divergence=1e-9, max_attempts=2, force=True)) == 2


def test_what_is_too_large_is_not_built(run: Run) -> None:
    with pytest.raises(BundleRefused, match="shrink it further"):
        run(max_size_bytes=1000)
    assert not run.out.exists()


def test_sizes_are_known_before_anything_is_built(tiny_weights: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_weights, dtype=torch.bfloat16)
    sizes = Sizes.of(model)
    for precision, bits in (("int4", 4), ("int8", 8)):
        folder = tmp_path / precision
        build(tiny_weights, folder, BuildOptions("cpu", precision, 32, bits))
        put_weights(folder, {})
        about = sizes.graph_bytes(bits, bits, 32)
        real = sum(path.stat().st_size for path in (folder / DATA, folder / GRAPH))
        assert real <= about < real + 2 * 20_000
        left = sizes.parameters_within(about, bits, bits, 32)
        assert abs(left - sizes.num_body - sizes.num_head - sizes.num_embedding) <= 1
