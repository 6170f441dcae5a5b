"""The platform as it is without a GPU: the onnx engine, from one command; and a bundle of it."""

import json
import os
import signal
import subprocess
import sys
import time

import openai
import pytest
from openai import BadRequestError

from tests.platform import MODEL, Platform, link_weights, running_platform

pytestmark = pytest.mark.platform
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def onnx_platform(tmp_path_factory, smollm2_dir):
    home = tmp_path_factory.mktemp("onnx")
    link_weights(smollm2_dir, home)
    # The default, as a user has it: no engine is named.
    with running_platform(home, MAAS_ENGINE="") as running:
        yield running


@pytest.fixture
def client(onnx_platform: Platform):
    with onnx_platform.openai() as made:
        yield made


def test_the_default_engine_without_a_gpu_is_onnx_and_answers(onnx_platform, client):
    (deployment,) = onnx_platform.status()["deployments"]
    assert deployment["engine"] == "onnx"
    stream = client.chat.completions.create(
        model=MODEL, messages=QUESTION, temperature=0, max_tokens=20, stream=True
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
    assert "Paris" in text


def test_what_the_api_has_works_on_it(client):
    ask = {"model": MODEL, "messages": QUESTION, "max_tokens": 12}
    several = client.chat.completions.create(**ask, n=2, temperature=1.0, seed=3)
    assert len({choice.message.content for choice in several.choices}) == 2
    weighed = client.chat.completions.create(**ask, logprobs=True, top_logprobs=3)
    assert len(weighed.choices[0].logprobs.content[0].top_logprobs) == 3
    schema = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 12}}}
    schema |= {"required": ["city"], "additionalProperties": False}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    formed = client.chat.completions.create(**{**ask, "max_tokens": 40}, response_format=form)
    assert set(json.loads(formed.choices[0].message.content)) == {"city"}


def test_what_it_cannot_do_is_refused_by_name(client):
    with pytest.raises(BadRequestError) as caught:
        client.embeddings.create(model=MODEL, input="x")
    assert "embeddings" in caught.value.message


def test_an_engine_that_is_killed_comes_back_within_seconds(onnx_platform, client):
    # python -P -m maas.edge.runtime.server: not the launcher, which has it further behind.
    (pid,) = [
        process.pid
        for process in onnx_platform.processes()
        if process.cmdline()[3:4] == ["maas.edge.runtime.server"]
    ]
    os.kill(pid, signal.SIGKILL)
    killed = time.monotonic()
    while True:
        try:
            asked = client.with_options(max_retries=0).chat.completions.create(
                model=MODEL, messages=QUESTION, temperature=0, max_tokens=8
            )
            break
        except openai.APIError:
            assert time.monotonic() - killed < 60
            time.sleep(0.2)
    assert "Paris" in asked.choices[0].message.content


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_an_export_runs_on_a_device(tmp_path, smollm2_dir):
    link_weights(smollm2_dir, tmp_path / "home")
    environment = {**os.environ, "MAAS_HOME": str(tmp_path / "home")}
    environment |= {"MAAS_EDGE_HOME": str(tmp_path / "device"), "MAAS_PORT": "1"}
    out = tmp_path / "smol.maas"

    def run(module: str, *arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", module, *arguments],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    export = json.loads(
        run("maas", "export", MODEL, "--precision", "int4", "--out", str(out), "--json")
    )
    assert export["receipt"]["verdict"] == "passed"
    assert export["receipt"]["score_percent"] >= 95
    assert out.stat().st_size == export["size_bytes"] < 98_000_000
    edge = "maas.edge.runtime.cli"
    assert "Paris" in run(edge, "run", str(out), "--prompt", "What is the capital of France?")
    listed = json.loads(run(edge, "list", "--json"))["bundles"]
    assert [bundle["bundle_id"] for bundle in listed] == [export["bundle_id"]]
    card = json.loads(run(edge, "bench", "--json"))
    assert card["bundle_id"] == export["bundle_id"]
    sys.stdout.write(f"load: {card['load_s']} s\n")
    assert 0 < card["load_s"] <= 1, card
    assert card["kv_bytes_per_token"] == 2 * 30 * 3 * 64 * 4
    assert 0 < card["ram_model_bytes"] < 2 * card["ram_peak_bytes"]
    assert card["ram_peak_bytes"] <= export["cost_card"]["ram_peak_bytes"] * 1.1
