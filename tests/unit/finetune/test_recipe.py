"""Every shipped recipe loads, and "auto" is what the rule says."""

import json

import pytest

from maas.core.errors import ConfigError, InvalidRequest
from maas.finetune.recipe import auto_batch, auto_epochs, load_recipes, resolve
from tests.conftest import REPOSITORY

FOLDER = REPOSITORY / "finetune"


def test_every_shipped_recipe_loads_under_the_name_of_its_file():
    recipes = load_recipes(FOLDER)
    assert set(recipes) == {"lora", "qlora", "full", "dpo", "pretrain"}
    assert {path.stem for path in FOLDER.glob("*.yaml")} == set(recipes)
    assert recipes["qlora"].tuning == "qlora"
    assert recipes["full"].tuning == "full"
    assert recipes["dpo"].method == "dpo"
    assert recipes["pretrain"].method == "pretrain"


def test_every_sample_is_a_chat():
    files = list((FOLDER / "samples").glob("*.jsonl"))
    assert files
    for file in files:
        for line in file.read_text(encoding="utf-8").splitlines():
            roles = [message["role"] for message in json.loads(line)["messages"]]
            assert roles[-1] == "assistant", file


@pytest.mark.parametrize(
    ("field", "text"), [("learning_rat", "learning_rat: 1"), ("learning_rate", "r: 8")]
)
def test_wrong_recipe_names_file_and_field(tmp_path, field, text):
    body = "name: bad\ndescription: d\nmethod: supervised\ntuning: lora\n"
    (tmp_path / "bad.yaml").write_text(body + text)
    with pytest.raises(ConfigError, match=rf"bad\.yaml: field {field}"):
        load_recipes(tmp_path)


@pytest.mark.parametrize(
    ("num_examples", "epochs"),
    [(1, 25), (16, 25), (72, 6), (134, 3), (1000, 3), (10_000, 2), (100_000, 1)],
)
def test_small_data_is_seen_often_and_large_data_once(num_examples, epochs):
    assert auto_epochs(num_examples) == epochs


@pytest.mark.parametrize(
    ("num_examples", "size"), [(1, 4), (2000, 4), (4000, 8), (10_000, 16), (10**6, 64)]
)
def test_batch_grows_with_the_data(num_examples, size):
    assert auto_batch(num_examples) == size


def test_what_is_asked_for_stays_and_auto_is_filled_in():
    recipe = load_recipes(FOLDER)["lora"]
    numbers = resolve(recipe, {"n_epochs": 7, "batch_size": "auto"}, num_examples=120)
    assert (numbers.n_epochs, numbers.batch_size) == (7, 4)
    with pytest.raises(InvalidRequest, match="dpo"):
        resolve(recipe, {"beta": 0.2}, num_examples=120)
    with pytest.raises(InvalidRequest, match="from 1 to 50"):
        resolve(recipe, {"n_epochs": 51}, num_examples=120)


def test_preferences_cannot_tune_whole_weights(tmp_path):
    body = "name: bad\ndescription: d\nmethod: dpo\ntuning: full\nlearning_rate: 1.0e-5\n"
    (tmp_path / "bad.yaml").write_text(body)
    with pytest.raises(ConfigError, match="needs an adapter"):
        load_recipes(tmp_path)
