"""What tests of the trainer share: a tiny model and small data."""

import json
from pathlib import Path

import pytest

from maas.finetune.recipe import Recipe
from maas.finetune.train.spec import TrainSpec
from tests.tiny import make_tiny


@pytest.fixture(scope="session")
def tiny_dir(tmp_path_factory: pytest.TempPathFactory, smollm2_dir: Path) -> Path:
    return make_tiny(smollm2_dir, tmp_path_factory.mktemp("tiny") / "weights")


def chats(count: int) -> list[dict]:
    return [
        {
            "messages": [
                {"role": "user", "content": f"What is number {n} called?" + " Say it." * (n % 3)},
                {"role": "assistant", "content": f"Number {n} is called {'abc'[n % 3] * 3}."},
            ]
        }
        for n in range(count)
    ]


@pytest.fixture
def make_spec(tmp_path: Path, tiny_dir: Path):
    """Return what makes a spec of chats, or of other records."""

    def make(
        records: list[dict] | None = None, *, run: str = "run", method: str = "supervised", **fields
    ) -> TrainSpec:
        data = tmp_path / "data.jsonl"
        data.write_text("".join(json.dumps(r) + "\n" for r in (records or chats(12))))
        recipe = {"r": 4, "lora_alpha": 8, "learning_rate": 1e-2, **fields.pop("recipe", {})}
        own = {"n_epochs": 3, "batch_size": 4, "learning_rate": 1e-2, "seed": 3} | fields
        run_dir = tmp_path / run
        run_dir.mkdir(exist_ok=True)
        return TrainSpec(
            run_dir=run_dir,
            model_dir=tiny_dir,
            train_file=data,
            method=method,
            recipe=Recipe(
                name="t", description="d", method=method, **({"tuning": "lora"} | recipe)
            ),
            max_length=512,
            **own,
        )

    return make
