"""Bundles of embeddings: a tiny encoder through export, proof, engine and OpenAI's client."""

import base64
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import openai
import pytest
import torch
from pydantic import SecretStr
from transformers import BertConfig, BertModel

from maas.core.errors import CapabilityMissing, InvalidRequest, PromptTooLong
from maas.edge.export.encoder import EmbeddingReceipt, make_encoder
from maas.edge.export.finish import put_beside
from maas.edge.export.spec import ExportSpec, QualityDemand
from maas.edge.runtime.engine import embed
from maas.edge.runtime.engine.contract import SamplingParams
from maas.edge.runtime.engine.embed import EmbedEngine
from maas.edge.runtime.engine.options import EngineOptions
from maas.edge.runtime.engine.pace import Pace
from tests.fakes.bundles import SEED
from tests.unit.edge.conftest import VOCAB_SIZE, write_tiny_tokenizer

# torch's exporter uses what torch itself deprecates, and says what it makes of names.
pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore::DeprecationWarning", "ignore:.*axis name.*:UserWarning"
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, EmbeddingReceipt]:
    home = tmp_path_factory.mktemp("encoder")
    (home / "m").mkdir()
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=64,
        initializer_range=0.3,
    )
    BertModel(config).save_pretrained(home / "m")
    write_tiny_tokenizer(home / "m")
    spec = ExportSpec(
        model_id="m",
        base_model_id="m",
        model_dir=home / "m",
        precision="int8",
        name="m",
        work_dir=home / "w",
        out_path=home / "m.maas",
        signing_key=SecretStr(SEED),
        task="embed",
        max_model_len=64,
        licence={},
        quality=QualityDemand(),
        created_at=0.0,
    )
    receipt = make_encoder(spec, home / "g", lambda _: None)
    put_beside(home / "m", home / "g", max_model_len=64)
    return home / "m", home / "g", receipt


def test_the_proof_says_what_is_kept(made) -> None:
    _, _, receipt = made
    assert receipt.verdict == "passed"
    assert receipt.mean_cosine > 0.99
    assert receipt.num_original > receipt.num_items // 10


@torch.no_grad()
def test_embeddings_are_the_originals_whatever_stands_beside_them(made) -> None:
    weights, graph, _ = made
    engine = EmbedEngine(graph, EngineOptions(num_threads=1))
    prompts = [[5, 6, 7], list(range(40)), [9], [5, 6, 7, 8]]
    together = engine.embed(prompts)
    model = BertModel.from_pretrained(weights).eval()
    for prompt, vector in zip(prompts, together, strict=True):
        ids = torch.tensor([prompt])
        states = model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
        expected = torch.nn.functional.normalize(states[0].mean(0), dim=-1).numpy()
        assert float(vector @ expected) > 0.99
        assert np.linalg.norm(vector) == pytest.approx(1.0, abs=1e-5)
        assert np.allclose(engine.embed([prompt])[0], vector, atol=2e-2)


def test_what_it_cannot_do_is_refused(made) -> None:
    engine = EmbedEngine(made[1], EngineOptions(num_threads=1))
    with pytest.raises(PromptTooLong, match="the model reads 64"):
        engine.embed([[1] * 65])
    with pytest.raises(InvalidRequest, match="empty"):
        engine.embed([[]])
    with pytest.raises(CapabilityMissing, match="makes embeddings"):
        engine.submit([1], SamplingParams(1), lambda _: None)


def test_a_hot_machine_pauses_between_batches_until_it_is_closed(made, monkeypatch) -> None:
    pauses: list[tuple[float, float]] = []

    def pause_s(step_s: float, share: float) -> float:
        pauses.append((step_s, share))
        return 0.4 if len(pauses) == 1 else 30.0

    monkeypatch.setattr(embed, "pause_s", pause_s)
    options = EngineOptions(num_threads=1, pace=lambda: Pace(0.25, "hot"))
    engine = EmbedEngine(made[1], options)
    started = time.monotonic()
    # A batch takes 16.
    engine.embed([[5]] * 17)
    assert 0.4 <= time.monotonic() - started < 20
    assert [share for _, share in pauses] == [0.25, 0.25]
    assert all(0 < step_s < 20 for step_s, _ in pauses)
    engine.close()
    started = time.monotonic()
    engine.embed([[5]])
    assert time.monotonic() - started < 20
    assert engine.stats.pace.reason == "hot"


@pytest.fixture(scope="module")
def client(made) -> Iterator[openai.OpenAI]:
    command = [sys.executable, "-P", "-m", "maas.edge.runtime.server", str(made[1])]
    command += ["--served-model-name", "m", "--threads", "1", "--no-spinning"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr
        url = server.stderr.readline().split()[-1]
        with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as asked:
            yield asked
        server.send_signal(signal.SIGTERM)
        server.wait(10)


def test_the_client_gets_numbers_and_base64_alike(client) -> None:
    # The client itself asks for base64 where nothing is said.
    packed = client.embeddings.create(model="m", input=["hello", "world"])
    plain = client.embeddings.create(model="m", input=["hello", "world"], encoding_format="float")
    assert [item.index for item in packed.data] == [0, 1]
    for one, other in zip(packed.data, plain.data, strict=True):
        assert np.allclose(one.embedding, other.embedding, atol=1e-6)
    assert plain.usage.prompt_tokens == 10
    raw = client.embeddings.with_raw_response.create(
        model="m", input="hello", encoding_format="base64"
    )
    text = json.loads(raw.text)["data"][0]["embedding"]
    assert len(np.frombuffer(base64.b64decode(text), "<f4")) == 64


def test_chats_are_refused_by_name(client) -> None:
    with pytest.raises(openai.BadRequestError, match="it generates no text"):
        client.completions.create(model="m", prompt="x")
