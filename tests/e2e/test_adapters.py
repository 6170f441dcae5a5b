"""Adapters on the real engine: loaded while it serves, mixed in one batch, back after it died."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from openai import InternalServerError, NotFoundError, OpenAI, OpenAIError

from maas.finetune.base_modules import read_base_modules
from tests.fakes.adapters import CONFIG, safetensors_of, write_adapter
from tests.platform import MODEL, Platform

pytestmark = pytest.mark.platform
PROMPT = "Once upon a time"
TARGETS = ["q_proj", "v_proj", "down_proj"]


def random_adapter(folder: Path, model_dir: Path, *, seed: int) -> Path:
    """Write an adapter that changes every answer."""
    source = np.random.default_rng(seed)
    base = read_base_modules(model_dir)
    assert base is not None
    tensors = {}
    for module, shape in base.shapes.items():
        if shape is None or module.rpartition(".")[2] not in TARGETS:
            continue
        for part, sides in (("A", (4, shape[1])), ("B", (shape[0], 4))):
            numbers = source.normal(scale=0.06, size=sides).astype("<f4")
            name = f"base_model.model.{module}.lora_{part}.weight"
            tensors[name] = ("F32", list(sides), numbers.tobytes())
    return write_adapter(folder, {**CONFIG, "target_modules": TARGETS}, safetensors_of(tensors))


def ask(client: OpenAI, model: str, *, num_tokens: int = 6) -> str:
    answer = client.completions.create(
        model=model, prompt=PROMPT, max_tokens=num_tokens, temperature=0, seed=1
    )
    assert answer.model == model
    return answer.choices[0].text


def when_ready(platform: Platform, client: OpenAI, model: str) -> str:
    def answers() -> str | None:
        try:
            return ask(client, model) or " "
        except (NotFoundError, InternalServerError):
            return None

    return platform.wait(answers, f"{model} to answer", 60)


@pytest.fixture(scope="module")
def tuned(platform: Platform) -> list[str]:
    """Names of three tuned models of random adapters."""
    folders = [
        random_adapter(platform.home / f"brought-{i}", platform.home / "models" / MODEL, seed=i)
        for i in range(3)
    ]
    arguments = ("--base", MODEL, "--suffix")
    return [
        platform.cli("model", "add-adapter", str(folder), *arguments, f"e2e-{i}")["id"]
        for i, folder in enumerate(folders)
    ]


def test_adapters_and_their_base_share_a_batch_and_each_answers_as_it_does_alone(platform, tuned):
    client = platform.openai()
    names = [MODEL, *tuned]
    alone = {name: when_ready(platform, client, name) for name in names}
    assert len(set(alone.values())) == len(names)
    with ThreadPoolExecutor(12) as pool:
        mixed = list(pool.map(lambda name: (name, ask(client, name)), names * 2))
    assert mixed == [(name, alone[name]) for name in names * 2]


def test_tuned_model_works_in_every_api(platform, tuned):
    client = platform.openai()
    when_ready(platform, client, tuned[0])
    chat = client.chat.completions.create(
        model=tuned[0], messages=[{"role": "user", "content": "Hi"}], max_tokens=3, stream=True
    )
    assert {chunk.model for chunk in chat} == {tuned[0]}
    assert (
        client.responses.create(model=tuned[0], input="Hi", max_output_tokens=3).model == tuned[0]
    )


def test_gateway_that_starts_again_knows_them(platform, tuned):
    client = platform.openai()
    when_ready(platform, client, tuned[0])
    platform.find("maas.bootstrap.gateway").kill()

    def answers() -> bool:
        try:
            return bool(ask(client, tuned[0], num_tokens=1))
        except OpenAIError:
            return False

    platform.wait(answers, "the gateway to answer for a tuned model", 60)


def test_adapter_that_the_base_cannot_have_is_refused_by_the_command(platform, tmp_path):
    done = platform.run_cli(
        "model", "add-adapter", str(write_adapter(tmp_path / "a")), "--base", MODEL
    )
    assert done.returncode != 0
    assert "another model" in done.stderr
    assert "Traceback" not in done.stderr


def test_deleted_model_is_gone_from_the_engine_too(platform, tuned):
    client = platform.openai()
    when_ready(platform, client, tuned[2])
    (replica,) = platform.replicas()

    def engine_names() -> set[str]:
        listed = httpx.get(f"{replica['url']}/v1/models").json()["data"]
        return {item["id"] for item in listed}

    before = engine_names()
    assert client.models.delete(tuned[2]).deleted
    with pytest.raises(NotFoundError):
        ask(client, tuned[2])
    platform.wait(lambda: len(engine_names()) == len(before) - 1, "the engine to let go", 20)
    assert ask(client, tuned[0])


@pytest.mark.slow
def test_engine_that_was_killed_holds_them_again(platform, tuned):
    client = platform.openai()
    expected = when_ready(platform, client, tuned[0])
    platform.find("VLLM::EngineCore").kill()
    time.sleep(1)
    platform.wait_ready()
    assert when_ready(platform, client, tuned[0]) == expected
    assert when_ready(platform, client, tuned[1]) != expected
