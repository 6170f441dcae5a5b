"""The server on a tiny model, asked by OpenAI's own client."""

import asyncio
import json
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from aiohttp.test_utils import TestClient, TestServer
from tokenizers import Tokenizer

from maas.edge.runtime.engine.pace import Pace
from maas.edge.runtime.server.adapters import AdapterRoutes
from maas.edge.runtime.server.app import EdgeServer
from maas.edge.runtime.server.served import Served, Serving
from maas.edge.runtime.server.templates import load_template
from maas.edge.runtime.server.text import TextStream
from tests.fakes.edge_engine import FakeEdgeEngine
from tests.unit.edge.conftest import write_tiny_tokenizer

USER = [{"role": "user", "content": "hello"}]
SCHEMA = {
    "type": "object",
    "properties": {"n": {"enum": [1, 22]}},
    "required": ["n"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "f", "parameters": SCHEMA}}


@pytest.fixture(scope="module")
def url(tiny: Path) -> Iterator[str]:
    command = [sys.executable, "-P", "-m", "maas.edge.runtime.server", str(tiny)]
    command += ["--served-model-name", "tiny", "--threads", "1", "--no-spinning"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr
        line = server.stderr.readline()
        assert "serving tiny on http" in line, line
        yield line.split()[-1]
        server.send_signal(signal.SIGTERM)
        assert server.wait(10) == 0


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as made:
        yield made


def ask(client: openai.OpenAI, **more):
    return client.chat.completions.create(
        model="tiny", messages=USER, **({"max_tokens": 8, "temperature": 0} | more)
    )


def metrics(url: str) -> dict[str, float]:
    with urllib.request.urlopen(f"{url}/metrics") as page:
        lines = page.read().decode().splitlines()
    return {name: float(value) for name, value in (line.split() for line in lines)}


def test_a_stream_is_the_same_answer_in_pieces(client):
    seed = {"seed": 3, "temperature": 1, "max_tokens": 30}
    whole = ask(client, **seed)
    chunks = list(ask(client, stream=True, stream_options={"include_usage": True}, **seed))
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason


def test_usage_comes_only_when_asked_for(client):
    assert all(chunk.choices for chunk in ask(client, stream=True))


def test_a_stop_string_never_shows_any_part_of_itself(client):
    # Forced to write abcabcabc, a byte a token.
    grammar = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"const": "abcabd"}}}
    answer = ask(client, response_format=grammar, stop=["abd"], max_tokens=20)
    assert answer.choices[0].message.content == '"abc'
    assert answer.choices[0].finish_reason == "stop"
    pieces = ask(client, response_format=grammar, stop=["abd"], max_tokens=20, stream=True)
    assert "".join(p.choices[0].delta.content or "" for p in pieces) == '"abc'


def test_characters_of_several_bytes_are_never_cut(client):
    text = "è水🌊"
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"const": text}}}
    pieces = list(ask(client, response_format=form, max_tokens=40, stream=True))
    shown = [p.choices[0].delta.content or "" for p in pieces]
    assert json.loads("".join(shown)) == text
    assert not any("\ufffd" in piece for piece in shown)


def test_an_answer_follows_a_schema(client):
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
    for seed in range(3):
        answer = ask(client, response_format=form, max_tokens=40, temperature=1, seed=seed)
        assert json.loads(answer.choices[0].message.content)["n"] in {1, 22}


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "f"}}])
@pytest.mark.parametrize("stream", [False, True])
def test_a_forced_tool_is_called(client, choice, stream):
    asked = {"tools": [TOOL], "tool_choice": choice, "max_tokens": 100, "stream": stream}
    # One call: a random model would not stop calling.
    answer = ask(client, parallel_tool_calls=False, **asked)
    if stream:
        chunks = list(answer)
        calls = [c for chunk in chunks for c in chunk.choices[0].delta.tool_calls or ()]
        reason = chunks[-1].choices[0].finish_reason
    else:
        calls, reason = answer.choices[0].message.tool_calls, answer.choices[0].finish_reason
    assert reason == "tool_calls"
    assert [call.function.name for call in calls] == ["f"]
    assert json.loads(calls[0].function.arguments)["n"] in {1, 22}


def test_several_choices_differ_and_a_seed_repeats_them(client):
    asked = {"n": 3, "seed": 4, "temperature": 1, "max_tokens": 12}
    first, again = ([c.message.content for c in ask(client, **asked).choices] for _ in range(2))
    assert len(set(first)) == 3
    assert first[0] == again[0]


def test_log_probabilities_have_the_forms_of_both_routes(client):
    chat = ask(client, logprobs=True, top_logprobs=2, max_tokens=3)
    content = chat.choices[0].logprobs.content
    assert len(content) == 3
    assert all(len(item.top_logprobs) == 2 for item in content)
    plain = client.completions.create(
        model="tiny", prompt=["ab", "cd"], max_tokens=3, temperature=0, logprobs=1
    )
    assert [choice.index for choice in plain.choices] == [0, 1]
    assert all(len(choice.logprobs.token_logprobs) == 3 for choice in plain.choices)
    assert plain.usage.prompt_tokens == 4


@pytest.mark.parametrize("stream", [False, True])
def test_each_token_of_a_completion_says_where_in_the_text_it_begins(client, stream):
    # Biased towards letters, a token each; some come in one step.
    bias = {str(n): 40 for n in range(70, 90)}
    asked = {"model": "tiny", "prompt": "abab", "max_tokens": 60, "temperature": 0, "logprobs": 0}
    answer = client.completions.create(**asked, n=2, logit_bias=bias, stream=stream)
    chunks = list(answer) if stream else [answer]
    for index in range(2):
        parts = [c for chunk in chunks for c in chunk.choices if c.index == index]
        text = "".join(part.text for part in parts)
        tokens = [t for part in parts if part.logprobs for t in part.logprobs.tokens]
        offsets = [o for part in parts if part.logprobs for o in part.logprobs.text_offset]
        assert len(tokens) == len(offsets) == 60
        assert offsets[0] == 0
        for token, offset in zip(tokens, offsets, strict=True):
            assert text[offset : offset + len(token)] == token
        assert offsets == list(range(60))


def test_tokens_of_one_character_begin_where_it_does(tmp_path):
    write_tiny_tokenizer(tmp_path)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    stream = TextStream(tokenizer, ["ü!"])
    assert stream.push(tokenizer.encode("aü水b").ids) == "aü水b"
    assert stream.offsets == [0, 1, 1, 2, 2, 2, 3]
    assert stream.push(tokenizer.encode("ü").ids) == ""
    assert (stream.offsets[-2:], stream.num_chars) == ([4, 4], 5)


@pytest.mark.parametrize(
    ("more", "status", "code"),
    [
        ({"model": "other"}, 404, "model_not_found"),
        ({"messages": [{"role": "user", "content": "x" * 600}]}, 400, "context_length_exceeded"),
        ({"max_tokens": 600}, 400, "context_length_exceeded"),
        ({"extra_body": {"echo": True}}, 400, "unknown_field"),
        ({"temperature": 3}, 400, "invalid_request"),
        ({"logit_bias": {"x": 1}}, 400, "invalid_request"),
        ({"logit_bias": {"99999": 1}}, 400, "invalid_request"),
        ({"logit_bias": {"-1": 1}}, 400, "invalid_request"),
        ({"logit_bias": {"9" * 20: 1}}, 400, "invalid_request"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}},
         400, "invalid_request"),
        ({"response_format": {"type": "json_schema",
          "json_schema": {"name": "x", "schema": {"type": "odd"}}}}, 400, "invalid_request"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url",
          "image_url": {"url": "data:,"}}]}]}, 400, "capability_missing"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_refused_and_the_engine_goes_on(client, url, more, status, code):
    with pytest.raises(openai.APIStatusError) as caught:
        client.chat.completions.create(
            **({"model": "tiny", "messages": USER, "max_tokens": 4} | more)
        )
    assert (caught.value.status_code, caught.value.code) == (status, code)
    assert metrics(url)["maas_edge_requests_waiting"] == 0
    assert ask(client).usage.completion_tokens > 0


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"prompt": [1, 99999]}, "prompt"),
        ({"prompt": [[1], [99999]]}, "prompt"),
        ({"prompt": [[1]] * 129}, "prompt"),
        ({"prompt": [[1]] * 2, "n": 65}, "n"),
    ],
)
def test_what_no_completion_may_ask_is_refused_by_the_fields_name(client, more, param):
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(**({"model": "tiny", "max_tokens": 4} | more))
    assert caught.value.param == param


def test_receipts_get_ids_with_the_end_token_among_them(client, url):
    body = {"model": "tiny", "prompt": [1, 2, 3], "max_tokens": 6, "temperature": 0, "logprobs": 2}
    body |= {"logit_bias": {"257": 100}, "return_token_ids": True}
    request = urllib.request.Request(
        f"{url}/v1/completions",
        json.dumps(body | {"return_tokens_as_token_ids": True}).encode(),
        {"Content-Type": "application/json"},
    )
    choice = json.load(urllib.request.urlopen(request))["choices"][0]
    assert choice["token_ids"] == [257]
    assert choice["text"] == ""
    (row,) = choice["logprobs"]["top_logprobs"]
    assert all(name.startswith("token_id:") for name in row)


def test_a_chat_is_told_as_tokens(url):
    body = {"model": "tiny", "messages": USER, "add_generation_prompt": True}
    request = urllib.request.Request(
        f"{url}/tokenize", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    said = json.load(urllib.request.urlopen(request))
    assert said["count"] == len("[user]hello[a]") == len(said["tokens"])


def test_embeddings_are_refused_by_name(client):
    with pytest.raises(openai.BadRequestError, match="it has no embeddings"):
        client.embeddings.create(model="tiny", input="x")


def test_a_client_that_leaves_stops_its_answer(url):
    async def leave() -> None:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client:
            bias = {str(n): 50 for n in range(97, 120)}
            stream = await client.chat.completions.create(
                model="tiny", messages=USER, max_tokens=450, stream=True, logit_bias=bias
            )
            await anext(aiter(stream))
            await stream.close()

    before = metrics(url)["maas_edge_tokens_total"]
    asyncio.run(leave())
    deadline = time.monotonic() + 5
    while metrics(url)["maas_edge_requests_running"] and time.monotonic() < deadline:
        time.sleep(0.02)
    assert metrics(url)["maas_edge_requests_running"] == 0
    assert metrics(url)["maas_edge_tokens_total"] - before < 450


def test_the_platforms_engine_never_pauses(url):
    with urllib.request.urlopen(f"{url}/health") as page:
        pace = json.load(page)["pace"]
    assert pace == {"share": 1.0, "reason": "full", "temperature_c": None}
    assert metrics(url)["maas_edge_pace_share"] == 1.0


async def test_a_device_says_how_much_of_the_time_it_computes_and_why(tmp_path):
    write_tiny_tokenizer(tmp_path)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    engine = FakeEdgeEngine(pace=Pace(0.4, "hot", 83.0))
    serving = Serving(Served("tiny", engine, tokenizer, load_template(tmp_path)))
    async with TestClient(TestServer(EdgeServer(serving).make_app())) as device:
        health = await (await device.get("/health")).json()
        page = await (await device.get("/metrics")).text()
    assert health == {"pace": {"share": 0.4, "reason": "hot", "temperature_c": 83.0}}
    assert "maas_edge_pace_share 0.4\n" in page


def test_what_is_no_bundle_is_refused_in_one_line(tmp_path):
    command = [sys.executable, "-m", "maas.edge.runtime.server", str(tmp_path)]
    done = subprocess.run(
        [*command, "--served-model-name", "x"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1
    assert "not a tokenizer" in done.stderr


async def test_only_the_platform_has_its_engine_load_adapters(tiny):
    body = json.dumps({"lora_name": "a", "lora_path": str(tiny)})
    serving = Serving()
    statuses = []
    for has_routes in (False, True):
        app = EdgeServer(serving).make_app()
        if has_routes:
            AdapterRoutes(serving).add_to(app)
        async with TestClient(TestServer(app)) as device:
            answer = await device.post("/v1/load_lora_adapter", data=body)
            statuses.append(answer.status)
    # With the routes there is only no bundle yet.
    assert statuses == [404, 503]
