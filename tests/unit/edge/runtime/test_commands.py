"""``maas-edge``: each command does what its name says, and speaks JSON where it is told to."""

import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from typer.testing import CliRunner

from maas.core.errors import BundleRefused
from maas.edge.runtime.bench import measure_cost
from maas.edge.runtime.bundle.signing import load_or_make_key, public_key_of
from maas.edge.runtime.cli.main import app
from maas.edge.runtime.cli.running import engine_options
from tests.unit.edge.runtime.test_shelf import make_bundle


@pytest.fixture
def key(tmp_path: Path) -> Ed25519PrivateKey:
    return load_or_make_key(tmp_path / "key")


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


def test_bundles_are_pulled_listed_verified_and_gone_back_to(edge, tmp_path: Path, key) -> None:
    one, two = (make_bundle(tmp_path, n, key=key, weights=i) for i, n in enumerate(("one", "two")))
    first = edge("pull", one)
    assert (first["name"], first["reused_bytes"]) == ("one", 0)
    second = edge("pull", two)
    assert 0 < second["fetched_bytes"] < first["fetched_bytes"], "only what changed"
    listed = {item["name"]: item["in_use"] for item in edge("list")["bundles"]}
    assert listed == {"one": False, "two": True}
    assert edge("rollback")["name"] == "one"
    verified = edge("verify")
    assert (verified["name"], verified["is_whole"], verified["is_trusted"]) == ("one", True, True)
    assert edge("verify", two)["bundle_id"] == second["bundle_id"]
    assert edge("verify", Path(first["folder"]))["bundle_id"] == first["bundle_id"]


def test_another_maker_is_taken_once_it_is_trusted(edge, tmp_path: Path, key) -> None:
    edge("pull", make_bundle(tmp_path, "one", key=key, weights=1))
    stranger = Ed25519PrivateKey.generate()
    other = make_bundle(tmp_path, "other", key=stranger, weights=2)
    for command in ("pull", "verify"):
        with pytest.raises(BundleRefused):
            edge(command, other)
    edge("trust", public_key_of(stranger), prints_json=False)
    assert edge("pull", other)["name"] == "other"
    folder = tmp_path / "unpacked"
    assert "parts of other" in edge("unpack", other, folder, prints_json=False)
    assert edge("verify", folder)["name"] == "other"


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
