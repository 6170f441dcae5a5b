"""``maas-edge``: each command does what its name says, and speaks JSON where it is told to."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from maas.core.errors import BundleRefused, EngineError
from maas.edge.runtime.battery import Battery
from maas.edge.runtime.bench import measure_cost
from maas.edge.runtime.bundle.signing import load_or_make_key, public_key_of
from maas.edge.runtime.cli import fleet, running
from maas.edge.runtime.cli.flags import PaceMode, engine_options
from maas.edge.runtime.cli.main import app
from maas.edge.runtime.engine.options import EngineOptions
from maas.edge.runtime.engine.pace import Pace, PaceReader, at_full_pace
from maas.edge.runtime.pacer import MachinePace, watch_machine
from maas.edge.runtime.server.served import Served
from maas.edge.runtime.shelf.shelf import Shelf
from maas.edge.runtime.shelf.sources import FileSource
from maas.edge.runtime.thermal import Heat
from tests.fakes.bundles import Made, make_bundle


@pytest.fixture
def forge(tiny: Path, tmp_path: Path) -> Callable[..., Made]:
    """Makes bundles of the tiny model; ``key`` names another maker."""

    def make(tag: str, *, key: str = "key", **changes: Any) -> Made:
        return make_bundle(tiny, tmp_path / f"{tag}.maas", key=tmp_path / key, tag=tag, **changes)

    return make


@pytest.fixture
def edge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Run a command on a device; return what it prints as JSON."""
    monkeypatch.setenv("MAAS_EDGE_HOME", str(tmp_path / "home"))

    def run(*arguments: str | Path, prints_json: bool = True):
        flags = ["--json"] if prints_json else []
        done = CliRunner().invoke(app, [*map(str, arguments), *flags])
        if done.exception is not None:
            raise done.exception
        return json.loads(done.stdout) if prints_json else done.stdout

    return run


def test_bundles_are_pulled_listed_verified_and_gone_back_to(edge, forge) -> None:
    one, two = forge("1").path, forge("2").path
    first = edge("pull", one)
    assert (first["name"], first["reused_bytes"]) == ("tiny1", 0)
    second = edge("pull", two)
    assert 0 < second["fetched_bytes"] < first["fetched_bytes"], "only what changed"
    listed = {item["name"]: item["in_use"] for item in edge("list")["bundles"]}
    assert listed == {"tiny1": False, "tiny2": True}
    assert edge("rollback")["name"] == "tiny1"
    verified = edge("verify")
    assert (verified["name"], verified["is_whole"], verified["is_trusted"]) == ("tiny1", True, True)
    assert edge("verify", two)["bundle_id"] == second["bundle_id"]
    assert edge("verify", Path(first["folder"]))["bundle_id"] == first["bundle_id"]


def test_another_maker_is_taken_once_it_is_trusted(edge, forge, tmp_path: Path) -> None:
    edge("pull", forge("1").path)
    other = forge("2", key="stranger").path
    for command in ("pull", "verify"):
        with pytest.raises(BundleRefused):
            edge(command, other)
    edge("trust", public_key_of(load_or_make_key(tmp_path / "stranger")), prints_json=False)
    assert edge("pull", other)["name"] == "tiny2"
    folder = tmp_path / "unpacked"
    assert "parts of tiny2" in edge("unpack", other, folder, prints_json=False)
    assert edge("verify", folder)["name"] == "tiny2"


def test_bundles_that_do_not_work_leave_the_one_in_use(edge, forge) -> None:
    edge("pull", forge("1").path)
    for command, tag in (("pull", "{{ 1/0 }}"), ("run", "2"), ("serve", "3"), ("pull", "4")):
        bad = forge(tag, **({} if "{" in tag else {"broken_graph": True})).path
        with pytest.raises(EngineError, match="does not work here, and is not used: "):
            edge(command, bad, prints_json=command != "serve")
    assert [b["name"] for b in edge("list")["bundles"] if b["in_use"]] == ["tiny1"]
    assert edge("run", "--prompt", "hi", "--max-tokens", "2")["num_completion_tokens"] == 2


def test_a_bundle_that_is_run_from_its_file_is_in_use_then(edge, forge) -> None:
    edge("pull", forge("1").path)
    assert edge("run", forge("2").path, "--prompt", "hi", "--max-tokens", "2")["answer"]
    assert [b["name"] for b in edge("list")["bundles"] if b["in_use"]] == ["tiny2"]


@pytest.mark.parametrize("score", ["bad", None, 10**400, -1, [1]])
def test_a_receipt_of_any_kind_is_listed(edge, forge, score: object) -> None:
    made = forge("1", receipt={"score_percent": score})
    Shelf(Path(os.environ["MAAS_EDGE_HOME"])).pull(FileSource(made.path))
    assert "?" in edge("list", prints_json=False)


def test_a_cost_card_has_every_figure_or_says_why_not(tiny: Path) -> None:
    card = measure_cost(tiny, 1)
    assert card.size_bytes == sum(p.stat().st_size for p in tiny.rglob("*") if p.is_file())
    assert card.ram_peak_bytes > card.size_bytes
    assert card.load_s > 0
    assert card.prefill_tok_s > 0
    assert card.decode_tok_s is not None
    assert card.decode_tok_s > 0
    assert card.num_threads == 1
    assert card.machine
    assert (card.energy_j_per_token is None) == ("does not tell" in card.energy_note)


def test_cool_takes_half_the_processors_and_lets_them_sleep() -> None:
    warm, cool = engine_options(0, cool=False), engine_options(0, cool=True)
    assert cool.threads == max(1, warm.threads // 2)
    assert (warm.enable_spinning, cool.enable_spinning) == (True, False)
    assert engine_options(3, cool=True).threads == 3


def watch(heat: Heat | None, battery: Battery | None = None) -> PaceReader:
    """Watch a machine that tells this."""
    return watch_machine(lambda: MachinePace(lambda: heat, lambda: battery))


def watch_a_cool_one() -> PaceReader:
    return watch(Heat("cpu", 40.0, 85.0))


@pytest.mark.parametrize("cool", [False, True])
def test_a_device_spares_its_machine_unless_it_is_told_not_to(cool: bool) -> None:
    for mode, may_pause in (("auto", True), ("full", False)):
        options = engine_options(1, cool=cool, pace=PaceMode(mode), watch=watch_a_cool_one)
        assert options.may_pause == may_pause
        assert isinstance(options.pace, MachinePace) == may_pause
    assert engine_options(1, cool=cool, watch=watch_a_cool_one).may_pause
    assert EngineOptions().pace is at_full_pace


@pytest.mark.parametrize(
    ("heat", "battery", "may_pause"),
    [
        (None, None, False),
        (None, Battery(90, True), True),
        (Heat("cpu", 40.0, 85.0), None, True),
    ],
)
def test_only_a_machine_that_tells_something_pays_for_pauses(
    heat: Heat | None, battery: Battery | None, may_pause: bool
) -> None:
    options = engine_options(1, cool=False, watch=lambda: watch(heat, battery))
    assert options.may_pause == may_pause
    assert (options.pace() == Pace(1.0, "untold", None)) == (not may_pause), "and says why"


@pytest.mark.parametrize("command", ["run", "serve", "agent"])
def test_each_command_hands_its_pace_to_the_engine(
    edge, forge, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    edge("pull", forge("1").path)
    made: list[EngineOptions] = []

    def stop(*_: object, **given: object) -> EngineOptions:
        made.append(engine_options(1, cool=False, pace=given["pace"], watch=watch_a_cool_one))
        raise EngineError("far enough")

    for module in (running, fleet):
        monkeypatch.setattr(module, "engine_options", stop)
    for flags in ([], ["--pace", "auto"], ["--pace", "full"]):
        with pytest.raises(EngineError, match="far enough"):
            edge(command, *flags, prints_json=False)
    assert [options.may_pause for options in made] == [True, True, False]
    refused = CliRunner().invoke(app, [command, "--pace", "slow"])
    assert refused.exit_code == 2


@pytest.mark.parametrize("parser", [None, "hermes", "llama3_json"])
def test_serve_reads_tool_calls_by_what_the_bundle_says(
    edge, forge, monkeypatch: pytest.MonkeyPatch, parser: str | None
) -> None:
    edge("pull", forge("1", tool_call_parser=parser).path)
    reads: list[bool] = []

    async def stop(served: Served, *_: object, **__: object) -> None:
        reads.append(served.reads_tools)
        served.engine.close()

    monkeypatch.setattr(running, "serve", stop)
    edge("serve", "--threads", "1", prints_json=False)
    assert reads == [parser == "hermes"]
