"""What every engine does, and that it does what it claims and claims no more."""

import asyncio
import json
import time

import pytest

from maas.core.errors import CapabilityMissing, EngineError, EngineUnreachable
from maas.edge.export.form import prepare_form

from .small_weights import write_adapter

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(300)]

QUESTION = "What is the capital of France?"
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 12}},
            "required": ["city"],
        },
    },
}


def text_of(answer: dict) -> str:
    return answer["choices"][0]["message"]["content"]


async def stream(served, path: str, **body) -> tuple[list[dict], bool]:
    """Return the chunks of a stream and whether it ended with the sentinel."""
    chunks, is_done = [], False
    body = {"model": served.model, "stream": True, "temperature": 0} | body
    async with served.client.post(f"{served.url}{path}", json=body) as response:
        assert response.status == 200, await response.text()
        async for line in response.content:
            if line.startswith(b"data: {"):
                chunks.append(json.loads(line[6:]))
            is_done = is_done or line.startswith(b"data: [DONE]")
    return chunks, is_done


async def stream_chat(served, **body) -> tuple[list[dict], bool]:
    messages = [{"role": "user", "content": QUESTION}]
    body = {"messages": messages, "max_tokens": 16} | body
    return await stream(served, "/v1/chat/completions", **body)


def deltas(chunks: list[dict]) -> str:
    choices = [chunk["choices"][0] for chunk in chunks if chunk["choices"]]
    return "".join(choice["delta"].get("content") or "" for choice in choices)


async def test_ready_engine_answers_a_chat_with_usage(served):
    assert await served.adapter.is_ready(served.client, served.url)
    answer = await served.chat(QUESTION)
    assert text_of(answer)
    usage = answer["usage"]
    assert usage["prompt_tokens"] > 0
    assert 0 < usage["completion_tokens"] <= 16


async def test_stream_carries_the_same_text_in_several_pieces(served):
    chunks, is_done = await stream_chat(served)
    assert deltas(chunks) == text_of(await served.chat(QUESTION))
    assert len(chunks) > 3
    assert is_done is served.can.done_sentinel
    reasons = [c["choices"][0].get("finish_reason") for c in chunks if c["choices"]]
    assert [reason for reason in reasons if reason] in (["stop"], ["length"])


async def test_usage_in_a_stream_is_the_usage_of_the_answer(served):
    chunks, _ = await stream_chat(served, stream_options={"include_usage": True})
    usages = [chunk["usage"] for chunk in chunks if chunk.get("usage")]
    assert usages
    expected = (await served.chat(QUESTION))["usage"]
    for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert usages[-1][name] == expected[name]


async def test_completions_answer_too(served):
    body = {"prompt": "The capital of France is", "max_tokens": 8}
    status, answer = await served.post("/v1/completions", temperature=0, **body)
    assert status == 200
    chunks, _ = await stream(served, "/v1/completions", **body)
    pieces = [chunk["choices"][0]["text"] for chunk in chunks if chunk["choices"]]
    assert "".join(pieces) == answer["choices"][0]["text"]
    assert "Paris" in answer["choices"][0]["text"] or served.adapter.name == "fake"


async def test_max_tokens_is_kept(served):
    answer = await served.chat("Tell me a long story.", max_tokens=5)
    assert answer["usage"]["completion_tokens"] == 5
    assert answer["choices"][0]["finish_reason"] == "length"


async def test_max_completion_tokens_is_kept_where_claimed(served):
    limits = {"max_tokens": None, "max_completion_tokens": 5}
    if served.can.max_completion_tokens and served.adapter.name != "fake":
        answer = await served.chat("Tell me a long story.", **limits)
        assert answer["usage"]["completion_tokens"] == 5
    else:
        answer = await served.chat(QUESTION, **limits)
        assert answer["usage"]["completion_tokens"] > 5


async def test_stop_string_ends_the_answer(served):
    whole = text_of(await served.chat(QUESTION))
    stop = whole.split()[3]
    answer = await served.chat(QUESTION, stop=[stop])
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert stop not in text_of(answer).rstrip().removesuffix(stop)
    assert len(text_of(answer)) < len(whole)


async def test_same_seed_gives_the_same_answer_and_others_differ(served):
    assert served.can.seed
    story = {"temperature": 1.0, "max_tokens": 24}
    answers = [text_of(await served.chat("Tell me a story.", seed=s, **story)) for s in (7, 7, 8)]
    assert answers[0] == answers[1]
    assert answers[0] != answers[2]


async def test_n_choices_where_claimed(served):
    answer = await served.chat("Tell me a story.", n=2, temperature=1.0)
    assert len(answer["choices"]) == (2 if served.can.n else 1)


async def test_logprobs_where_claimed(served):
    answer = await served.chat(QUESTION, logprobs=True, top_logprobs=2)
    logprobs = answer["choices"][0].get("logprobs")
    if served.can.logprobs:
        assert all(item["logprob"] <= 0 for item in logprobs["content"])
        assert len(logprobs["content"]) == answer["usage"]["completion_tokens"] or (
            served.adapter.name == "fake"
        )
    else:
        assert logprobs is None


async def test_structured_output_follows_the_schema_where_claimed(served):
    schema = {"name": "person", "schema": PERSON, "strict": True}
    response_format = {"type": "json_schema", "json_schema": schema}
    text = text_of(
        await served.chat("Describe a person.", response_format=response_format, max_tokens=80)
    )
    if served.can.structured_output:
        assert {"name", "age"} <= set(json.loads(text))
    else:
        with pytest.raises(json.JSONDecodeError):
            json.loads(text)


async def test_named_tool_is_called_where_claimed(served):
    choice = {"type": "function", "function": {"name": "get_weather"}}
    answer = await served.chat(
        "Weather in Paris?", tools=[WEATHER], tool_choice=choice, max_tokens=64
    )
    calls = answer["choices"][0]["message"].get("tool_calls")
    if served.can.tools:
        assert calls[0]["function"]["name"] == "get_weather"
        assert "city" in json.loads(calls[0]["function"]["arguments"])
    else:
        assert not calls


async def test_logit_bias_where_claimed(served):
    messages = [{"role": "user", "content": QUESTION}]
    body = {"messages": messages, "max_tokens": 4, "temperature": 0}
    status, answer = await served.post("/v1/chat/completions", logit_bias={"253": 100}, **body)
    if served.can.logit_bias and served.adapter.name != "fake":
        assert text_of(answer) != text_of(await served.chat(QUESTION, max_tokens=4))
    elif served.adapter.name != "fake":
        assert status >= 400


async def test_cache_salt_keeps_tenants_apart_where_claimed(served):
    if not served.can.cache_salt:
        messages = [{"role": "user", "content": "x"}]
        status, _ = await served.post("/v1/chat/completions", messages=messages, cache_salt="a")
        assert status == 422
        return
    prompt = f"{time.time()} " + "rain falls on the hills " * 40
    num_cached = []
    for salt in ("one", "one", "two"):
        usage = (await served.chat(prompt, cache_salt=salt, max_tokens=2))["usage"]
        num_cached.append((usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0)
    assert num_cached[0] == 0
    assert num_cached[1] > 100
    assert num_cached[2] == 0


async def test_closed_connection_stops_the_work_where_claimed(served):
    if not served.can.abort_on_disconnect:
        pytest.skip("not claimed")
    messages = [{"role": "user", "content": "Count to a thousand."}]
    body = {"model": served.model, "messages": messages, "max_tokens": 1500, "stream": True}
    async with served.client.post(f"{served.url}/v1/chat/completions", json=body) as response:
        async for line in response.content:
            if line.startswith(b"data: {"):
                break
        if (await served.adapter.load(served.client, served.url)).num_tokens_total is not None:
            assert await until(lambda load: load.num_running == 1, served, 3)
        response.close()
    assert await until(lambda load: load.num_running == 0, served, 3)
    started = time.monotonic()
    await served.chat(QUESTION, max_tokens=2)
    assert time.monotonic() - started < 3


async def until(condition, served, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition(await served.adapter.load(served.client, served.url)):
            return True
        await asyncio.sleep(0.05)
    return False


async def test_token_count_moves_with_the_work_or_is_unknown(served):
    before = (await served.adapter.load(served.client, served.url)).num_tokens_total
    await served.chat(QUESTION)
    after = (await served.adapter.load(served.client, served.url)).num_tokens_total
    if before is None:
        assert served.adapter.name == "transformers"
    else:
        assert after > before


async def test_adapter_answers_until_it_is_unloaded_where_claimed(served, tmp_path):
    engine, where = served.adapter, (served.client, served.url)
    if not served.can.runtime_adapters:
        with pytest.raises(CapabilityMissing):
            await engine.load_adapter(*where, adapter_name="tuned", adapter_dir=tmp_path)
        return
    folder = tmp_path / "adapter"
    if engine.name != "fake":
        write_adapter(folder, served.model_dir)
    if engine.name == "onnx":
        folder = prepare_form(served.model_dir, tmp_path / "forms", adapter_dir=folder)
    plain = text_of(await served.chat(QUESTION))
    for _ in range(2):  # twice is fine
        await engine.load_adapter(*where, adapter_name="tuned", adapter_dir=folder)
    assert text_of(await served.chat(QUESTION, model="tuned")) != plain
    for _ in range(2):
        await engine.unload_adapter(*where, adapter_name="tuned")
    messages = [{"role": "user", "content": QUESTION}]
    status, _ = await served.post("/v1/chat/completions", messages=messages, model="tuned")
    assert status == 404


async def test_adapter_that_is_none_is_refused(served, tmp_path):
    if not served.can.runtime_adapters or served.adapter.name == "fake":
        pytest.skip("not claimed")
    with pytest.raises(EngineError, match="load adapter 'broken'"):
        await served.adapter.load_adapter(
            served.client, served.url, adapter_name="broken", adapter_dir=tmp_path
        )
    assert await served.chat(QUESTION)


async def test_nobody_at_the_address_is_unreachable_not_an_exception_of_another_kind(served):
    url = "http://127.0.0.1:9"
    assert not await served.adapter.is_ready(served.client, url)
    with pytest.raises(EngineUnreachable):
        await served.adapter.load(served.client, url)
