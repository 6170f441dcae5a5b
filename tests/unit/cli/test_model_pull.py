"""``maas model pull`` of one form of the weights, and what is done with it after."""

import json

import pytest
import yaml
from typer.testing import CliRunner

from maas.cli.main import app
from tests.unit.catalog.fixtures import make_card, write_weights
from tests.unit.catalog.weights.hub_server import COMMIT, FakeHub, serve

FOLDER = "tiny@awq"


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A platform that knows one model: plain weights in a folder, AWQ on a hub."""
    awq = {"name": "awq", "bits_per_weight": 4.5, "source": "hf://org/tiny@main"}
    plain = f"file://{tmp_path}/plain"
    card = make_card(source=[plain], variants=[awq], parameters=1000)
    models = tmp_path / "cards"
    models.mkdir()
    (models / "tiny.yaml").write_text(yaml.safe_dump(card.model_dump(mode="json")))
    write_weights(tmp_path / "plain")
    hub = FakeHub(write_weights(tmp_path / "hub", size=2000))
    monkeypatch.setenv("MAAS_HOME", str(tmp_path))
    monkeypatch.setenv("MAAS_MODELS_DIR", str(models))
    with serve(hub) as url:
        monkeypatch.setenv("MAAS_HF_ENDPOINT", url)
        yield tmp_path


def _run(*words: str) -> dict:
    done = CliRunner().invoke(app, [*words, "--json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_variant_comes_from_its_own_repository_into_its_own_folder(home):
    pulled = _run("model", "pull", "tiny", "--quantization", "awq")
    folder = home / "models" / FOLDER
    assert pulled["model_dir"] == str(folder)
    assert (folder / "model.safetensors").stat().st_size < 3000
    assert json.loads((folder / "manifest.json").read_text())["commit"] == COMMIT
    assert not (home / "models" / "tiny").exists()
    assert _run("model", "verify", "tiny", "--quantization", "awq")["is_whole"]
    listed = _run("model", "list")["models"][0]
    assert (listed["is_prepared"], listed["prepared_variants"]) == (False, ["awq"])


def test_deployment_of_a_variant_keeps_its_name(home):
    made = _run("deploy", "create", "--model", "tiny", "--quantization", "awq")
    assert made["options"] == {"quantization": "awq"}


@pytest.mark.parametrize(
    "words",
    [
        ("model", "pull", "tiny"),
        ("model", "check", "tiny"),
        ("model", "verify", "tiny"),
        ("deploy", "create", "--model", "tiny"),
    ],
)
def test_quantisation_nobody_has_is_refused_by_name(home, words):
    done = CliRunner().invoke(app, [*words, "--quantization", "gptq"])
    assert done.exit_code != 0
    said = done.output + str(done.exception)
    assert "'gptq'" in said
    assert "awq" in said
