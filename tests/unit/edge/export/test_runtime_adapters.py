"""Run-time adapters: one graph that answers as the base, and as each tuned model, exactly."""

import asyncio
import json
import queue
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import onnxruntime as ort
import onnxruntime_genai as og
import pytest
import torch
from aiohttp.test_utils import TestClient, TestServer
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

from maas.core.errors import AdapterRefused, BundleRefused, EngineError, NotFound
from maas.edge.export.build import BuildOptions, build
from maas.edge.export.finish import put_beside
from maas.edge.export.lora import read_adapter
from maas.edge.export.runtime_adapters import Taken, put_adapters
from maas.edge.quality.measure import Reference
from maas.edge.quality.scorers import OnnxScorer, TorchScorer
from maas.edge.runtime.bundle.archive import hash_file, pack, unpack
from maas.edge.runtime.bundle.manifest import (
    ADAPTER_FILE,
    Adapter,
    Manifest,
    Part,
    decode,
    encode,
    with_id,
)
from maas.edge.runtime.bundle.signing import load_or_make_key
from maas.edge.runtime.cli.main import app
from maas.edge.runtime.engine.contract import Output, SamplingParams
from maas.edge.runtime.engine.core import OnnxEngine
from maas.edge.runtime.engine.options import EngineOptions
from maas.edge.runtime.server.app import EdgeServer
from maas.edge.runtime.server.serve import open_served
from maas.edge.runtime.server.served import Serving

TOKENS = [int(n) for n in np.random.default_rng(5).integers(0, 256, 30)]
OPTIONS = EngineOptions(num_threads=1, enable_spinning=False)
GREEDY = SamplingParams(16, temperature=0.0, ignore_eos=True)
NOTHING = Reference((), (), ())
# One on a part of a packed product, of its own rank; one everywhere.
TARGETS = {
    "narrow": (4, ["q_proj", "v_proj"]),
    "wide": (6, ["k_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]),
}


def tune(weights: Path, out: Path, name: str, **more: object) -> Path:
    """A random adapter that changes answers."""
    r, targets = TARGETS[name]
    torch.manual_seed(r)
    model = AutoModelForCausalLM.from_pretrained(weights, dtype=torch.float32)
    config = LoraConfig(
        r=r, lora_alpha=3 * r, target_modules=targets, init_lora_weights=False, **more
    )
    get_peft_model(model, config).save_pretrained(out)
    return out


@pytest.fixture(scope="module")
def made(tiny_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights, adapters, the graph before they were put in, and after."""
    home = tmp_path_factory.mktemp("adapters")
    options = BuildOptions(precision="int8", block_size=32, accuracy_level=1)
    build(tiny_weights, home / "plain", options)
    build(tiny_weights, home / "bundle", options)
    model = AutoModelForCausalLM.from_pretrained(tiny_weights, dtype=torch.float32)
    taken = []
    for name in TARGETS:
        tuned, adapter = read_adapter(model, name, tune(tiny_weights, home / name, name))
        taken.append(Taken(name, adapter, NOTHING))
        model = tuned.unload()
    put_adapters(home / "bundle", taken, model)
    put_beside(tiny_weights, home / "bundle", max_model_len=128)
    return home


def adapter_dir(made: Path, name: str) -> Path:
    return made / "bundle" / "adapters" / name


def test_without_an_adapter_the_base_answers_to_the_last_bit(made: Path) -> None:
    before = OnnxScorer(made / "plain", OPTIONS).logits(TOKENS)
    assert np.array_equal(OnnxScorer(made / "bundle", OPTIONS).logits(TOKENS), before)


@pytest.mark.parametrize("name", TARGETS)
def test_with_an_adapter_the_graph_computes_what_torch_does(
    made: Path, tiny_weights: Path, name: str
) -> None:
    base = AutoModelForCausalLM.from_pretrained(tiny_weights, dtype=torch.float32)
    plain = TorchScorer(base, frozenset([257])).logits(TOKENS)
    tuned = PeftModel.from_pretrained(base, str(made / name)).eval()
    expected = TorchScorer(tuned, frozenset([257])).logits(TOKENS)
    ours = OnnxScorer(made / "bundle", OPTIONS, adapter_dir=adapter_dir(made, name)).logits(TOKENS)
    changed = float(np.abs(expected - plain).mean())
    assert float(np.abs(ours - expected).mean()) < 0.1 * changed, changed


def test_genai_loads_the_folder_and_its_adapters(made: Path) -> None:
    model = og.Model(str(made / "bundle"))
    adapters = og.Adapters(model)
    for name in TARGETS:
        adapters.load(str(adapter_dir(made, name) / ADAPTER_FILE), name)
    for name in (None, *TARGETS):
        params = og.GeneratorParams(model)
        params.set_search_options(max_length=64, do_sample=False)
        generator = og.Generator(model, params)
        if name is not None:
            generator.set_active_adapter(adapters, name)
        generator.append_tokens(TOKENS)
        folder = None if name is None else adapter_dir(made, name)
        ours = OnnxScorer(made / "bundle", OPTIONS, adapter_dir=folder).logits(TOKENS)
        assert np.allclose(generator.get_logits()[0, -1], ours[-1], atol=1e-3)


@pytest.fixture
def engine(made: Path) -> Iterator[OnnxEngine]:
    engine = OnnxEngine(made / "bundle", OPTIONS)
    yield engine
    engine.close()


def ask(engine: OnnxEngine, adapter: str | None) -> queue.Queue[Output]:
    outputs: queue.Queue[Output] = queue.Queue()
    engine.submit(TOKENS, GREEDY, outputs.put, adapter=adapter)
    return outputs


def answer(outputs: queue.Queue[Output]) -> list[int]:
    tokens: list[int] = []
    while True:
        output = outputs.get(timeout=30)
        tokens += output.token_ids
        if output.finish_reason is not None:
            assert output.finish_reason == "length", output.error
            return tokens


def test_base_and_adapters_answer_side_by_side_as_they_do_alone(
    engine: OnnxEngine, made: Path
) -> None:
    for name in TARGETS:
        engine.load_adapter(name, adapter_dir(made, name))
    names = (None, *TARGETS)
    alone = [answer(ask(engine, name)) for name in names]
    assert len({tuple(tokens) for tokens in alone}) == len(names)
    together = [ask(engine, name) for name in names]
    assert [answer(outputs) for outputs in together] == alone
    engine.unload_adapter("wide")
    assert engine.adapters == ("narrow",)


def write(folder: Path, **values: np.ndarray) -> Path:
    folder.mkdir()
    made = ort.AdapterFormat()
    made.set_adapter_version(1)
    made.set_model_version(1)
    made.set_parameters({n: ort.OrtValue.ortvalue_from_numpy(v) for n, v in values.items()})
    made.export_adapter(str(folder / ADAPTER_FILE))
    return folder


SITE = "model.layers.0.attn.qkv_proj"


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"other": np.ones((64, 2), np.float32)}, "no input 'other'"),
        ({f"{SITE}.lora_A": np.ones((63, 2), np.float32)}, "the graph takes"),
        ({f"{SITE}.lora_A": np.ones((64, 2), np.float16)}, "the graph takes"),
        ({f"{SITE}.lora_A": np.ones((64, 2), np.float32)}, "lora_B is missing"),
        (
            {
                f"{SITE}.lora_A": np.ones((64, 2), np.float32),
                f"{SITE}.lora_B": np.ones((3, 128), np.float32),
            },
            "the graph takes",
        ),
    ],
)
def test_an_adapter_of_another_model_is_refused_before_it_answers(
    engine: OnnxEngine, tmp_path: Path, values: dict[str, np.ndarray], why: str
) -> None:
    with pytest.raises(EngineError, match=why):
        engine.load_adapter("x", write(tmp_path / "x", **values))
    assert engine.adapters == ()


def test_a_damaged_adapter_is_refused(engine: OnnxEngine, tmp_path: Path) -> None:
    (tmp_path / ADAPTER_FILE).write_bytes(b"TORT" * 40)
    with pytest.raises(EngineError, match="not an adapter of onnxruntime"):
        engine.load_adapter("x", tmp_path)


def test_an_adapter_that_is_more_than_products_is_refused(
    tiny_weights: Path, tmp_path: Path
) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_weights, dtype=torch.float32)
    folder = tune(tiny_weights, tmp_path / "a", "narrow", use_dora=True)
    with pytest.raises(AdapterRefused, match="use_dora"):
        read_adapter(model, "a", folder)


def test_an_adapter_of_another_size_is_refused(made: Path) -> None:
    config = LlamaConfig(
        vocab_size=32, hidden_size=32, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1,
    )  # fmt: skip
    with pytest.raises(AdapterRefused, match="does not fit"):
        read_adapter(LlamaForCausalLM(config), "narrow", made / "narrow")


def describe(folder: Path, **changes: object) -> Manifest:
    paths = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    parts = tuple(
        Part(
            path,
            (folder / path).stat().st_size,
            hash_file(folder / path),
            "adapter" if path.startswith("adapters/") else "config",
        )
        for path in paths
    )
    manifest = Manifest(
        schema_version=1, bundle_id="", name="small", model_id="m", base_model_id="m",
        created_at=0.0, precision="int8", target="cpu", task="generate", licence={}, lineage={},
        parts=parts, adapters=tuple(Adapter(name, f"adapters/{name}") for name in TARGETS),
        ram_required_bytes=1, max_model_len=128, cost_card={}, receipt={},
    )  # fmt: skip
    return msgspec.structs.replace(manifest, **changes)


@pytest.mark.parametrize(
    "adapters",
    [
        (),
        (Adapter("narrow", "adapters/narrow"),),
        (*(Adapter(n, f"adapters/{n}") for n in TARGETS), Adapter("third", "adapters/third")),
        (Adapter("narrow", "adapters/narrow"), Adapter("wide", "adapters/narrow")),
        (Adapter("narrow", "adapters/narrow"), Adapter("NARROW", "adapters/NARROW")),
        (Adapter("narrow", "adapters/narrow"), Adapter("../wide", "adapters/../wide")),
    ],
)
def test_a_bundle_holds_exactly_the_adapters_it_names(made: Path, adapters) -> None:
    good = with_id(describe(made / "bundle"))
    assert decode(encode(good)) == good
    with pytest.raises(BundleRefused):
        decode(encode(with_id(msgspec.structs.replace(good, adapters=adapters))))


@pytest.mark.parametrize("name", ["adapters/wide/code.bin", "Adapters/x"])
def test_nothing_else_lies_among_the_adapters(made: Path, name: str) -> None:
    good = describe(made / "bundle")
    more = (*good.parts, Part(name, 1, "0" * 64, "config"))
    with pytest.raises(BundleRefused, match="not the adapters that it names"):
        decode(encode(with_id(msgspec.structs.replace(good, parts=more))))


def test_an_adapter_called_as_the_model_is_refused(made: Path) -> None:
    with pytest.raises(BundleRefused, match="a name of its own"):
        decode(encode(with_id(describe(made / "bundle", model_id="wide"))))


@pytest.fixture
def file(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MAAS_EDGE_HOME", str(tmp_path / "edge"))
    out = tmp_path / "m.maas"
    pack(made / "bundle", describe(made / "bundle"), load_or_make_key(tmp_path / "key"), out)
    return out


def run(file: Path, *options: str) -> str:
    shown = CliRunner().invoke(
        app, ["run", str(file), "--prompt", "hello", "--max-tokens", "8", "--json", *options]
    )
    assert shown.exit_code == 0, shown.output
    return json.loads(shown.stdout)["answer"]


def test_the_device_answers_with_the_adapter_it_is_told(file: Path) -> None:
    answers = {run(file), *(run(file, "--adapter", name) for name in TARGETS)}
    assert len(answers) == 1 + len(TARGETS)
    refused = CliRunner().invoke(app, ["run", str(file), "--prompt", "x", "--adapter", "third"])
    assert isinstance(refused.exception, NotFound)
    assert "narrow, wide" in refused.exception.message


def test_the_device_serves_each_adapter_as_a_model(file: Path, tmp_path: Path) -> None:
    head = unpack(file, tmp_path / "out", None)
    served = open_served(tmp_path / "out", "m", OPTIONS, head.manifest.adapters)

    async def ask_all() -> tuple[list[str], list[str]]:
        async with TestClient(TestServer(EdgeServer(Serving(served)).make_app())) as client:
            listed = await (await client.get("/v1/models")).json()
            names = [item["id"] for item in listed["data"]]
            texts = []
            for name in names:
                body = {"model": name, "prompt": "hello", "max_tokens": 8, "temperature": 0}
                answer = await (await client.post("/v1/completions", json=body)).json()
                texts.append(answer["choices"][0]["text"])
            return names, texts

    try:
        names, texts = asyncio.run(ask_all())
    finally:
        served.engine.close()
    assert names == ["m", "narrow", "wide"]
    assert len(set(texts)) == 3
