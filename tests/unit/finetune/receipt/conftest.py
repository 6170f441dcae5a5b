"""A tuned model of a few weights, its golden file, and engines that serve it, right or wrong."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from maas.finetune.data.rendering import Renderer
from maas.finetune.receipt.golden import write_golden
from tests.unit.finetune.receipt.adapters import tune
from tests.unit.finetune.receipt.serving import Serving, ServingEngine

CHATS = [
    [{"role": "user", "content": "What is number 3 called?"}],
    [
        {"role": "system", "content": "You are a gate keeper."},
        {"role": "user", "content": "Which word opens the gate?"},
    ],
]


@dataclass(frozen=True)
class Tuned:
    """A base, an adapter that changes what it says, and what the trainer's side says of them."""

    model_dir: Path
    adapter_dir: Path
    golden: Path

    def load(self, adapter_dir: Path | None = None, model_dir: Path | None = None) -> PeftModel:
        base = AutoModelForCausalLM.from_pretrained(
            str(model_dir or self.model_dir), dtype=torch.float32
        )
        return PeftModel.from_pretrained(base, str(adapter_dir or self.adapter_dir)).eval()


@pytest.fixture(scope="session", autouse=True)
def short_answers() -> Iterator[None]:
    """Answers of a few tokens: the same code, in a fraction of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("maas.finetune.receipt.golden.NUM_NEW_TOKENS", 8)
        yield


@pytest.fixture(scope="session")
def spread_dir(tiny_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with weights large enough that it prefers some tokens to others."""
    target = tmp_path_factory.mktemp("spread") / "weights"
    shutil.copytree(tiny_dir, target)
    weights = load_file(target / "model.safetensors")
    for tensor in weights.values():
        if tensor.dim() > 1:
            tensor.mul_(10)
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    return target


@pytest.fixture(scope="session")
def tuned(spread_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Tuned:
    folder = tmp_path_factory.mktemp("tuned")
    adapter = tune(spread_dir, folder / "adapter")
    golden = folder / "golden" / "adapter.json"
    write_golden(spread_dir, {adapter: golden}, CHATS, dtype="float32")
    return Tuned(spread_dir, adapter, golden)


@pytest.fixture
def serve(tuned: Tuned) -> Iterator[Callable[..., ServingEngine]]:
    """Return what starts an engine with a model; it ends with the test."""
    with contextmanager(_engines)(tuned) as start:
        yield start


def _engines(tuned: Tuned) -> Iterator[Callable[..., ServingEngine]]:
    running: list[ServingEngine] = []

    def start(model: torch.nn.Module, *, renderer: Path | None = None, **wrong: object):
        serving = Serving(model, Renderer(renderer or tuned.model_dir), **wrong)
        running.append(ServingEngine(serving))
        return running[-1]

    try:
        yield start
    finally:
        for engine in running:
            engine.close()
