"""``maas data check``: a report without a server; exit code 1 where data cannot be trained on."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from maas.cli.main import app

MODEL = "smollm2-135m-instruct"


def _chats(count: int) -> str:
    return "".join(
        json.dumps(
            {
                "messages": [
                    {"role": "user", "content": f"What is {n}?"},
                    {"role": "assistant", "content": "A number."},
                ]
            }
        )
        + "\n"
        for n in range(count)
    )


@pytest.fixture
def home(tmp_path: Path, smollm2_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / MODEL).symlink_to(smollm2_dir)
    monkeypatch.setenv("MAAS_HOME", str(tmp_path))
    return tmp_path


def test_good_data_is_counted_and_estimated(home: Path):
    file = home / "train.jsonl"
    file.write_text(_chats(12))
    asked = ["data", "check", str(file), "--model", MODEL, "--epochs", "2", "--json"]
    done = CliRunner().invoke(app, asked)
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert report["are_tokens_counted"]
    assert 0 < report["tokens"]["targets"] < report["num_tokens"]
    assert report["estimate"]["num_trained_tokens"] == 2 * report["num_tokens"]
    assert report["estimate"]["seconds"] > 0


def test_structure_is_checked_even_where_the_tokenizer_cannot_be_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("MAAS_HOME", str(tmp_path))
    monkeypatch.setenv("MAAS_HF_ENDPOINT", "http://127.0.0.1:9")
    file = tmp_path / "train.jsonl"
    file.write_text(_chats(12) + "{\n")
    done = CliRunner().invoke(app, ["data", "check", str(file), "--model", "qwen3-8b"])
    assert done.exit_code == 1, done.output
    assert "train.jsonl:13" in done.stdout
    assert "tokens were not counted" in done.stdout
