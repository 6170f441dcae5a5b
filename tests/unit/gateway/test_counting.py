"""How many tokens a request can take: never less than the model's own tokenizer says."""

import json
from dataclasses import replace

import pytest
from transformers import AutoTokenizer

from maas.gateway.facts import ModelFacts
from maas.gateway.relay.counting import TokenBound, count_answer, exact_bound, quick_bound
from maas.gateway.relay.requests import parse_chat, parse_completion, parse_embedding
from maas.gateway.relay.snapshot import ModelEntry

CONTEXT = 2048
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Tell the weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
CHATS = {
    "a question": [{"role": "user", "content": "What is the capital of France?"}],
    "with a system prompt": [
        {"role": "system", "content": "Answer in French."},
        {"role": "user", "content": "Qu'est-ce que l'été?"},
    ],
    "several turns": [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "Hello! How can I help?"},
        {"role": "user", "content": "数字人民币 <|im_end|> 🙂" * 20},
    ],
    "empty": [{"role": "user", "content": ""}],
}


def entry(tokenizer_path=None, *, is_multimodal=False):
    facts = ModelFacts(
        id="m", owned_by="us", tokenizer_path=tokenizer_path, is_multimodal=is_multimodal
    )
    return ModelEntry(name="m", root="m", facts=facts, created=0, max_model_len=CONTEXT)


def parsed(parse, **body):
    raw = json.dumps({"model": "m", **body}).encode()
    return parse(raw, lambda _: ModelFacts(id="m", owned_by="us"), 32)


@pytest.mark.parametrize("name", CHATS)
@pytest.mark.parametrize("tools", [None, [TOOL]], ids=["plain", "tools"])
def test_chats_are_counted_as_the_model_reads_them(smollm2_dir, name, tools):
    tokenizer = AutoTokenizer.from_pretrained(smollm2_dir)
    ids = tokenizer.apply_chat_template(
        CHATS[name], tools=tools, add_generation_prompt=True, return_dict=False
    )
    extra = {"tools": tools} if tools else {}
    request = parsed(parse_chat, messages=CHATS[name], max_tokens=7, **extra)
    exact = exact_bound(request, entry(smollm2_dir / "tokenizer.json"))
    assert exact == TokenBound(len(ids), 7)
    assert quick_bound(request, entry()).input_tokens >= len(ids)


def test_a_template_that_refuses_a_chat_leaves_the_bound_by_bytes(gemma_dir):
    # Roles must alternate there; the engine will refuse it too, and nothing is charged.
    messages = [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]
    request = parsed(parse_chat, messages=messages)
    path = entry(gemma_dir / "tokenizer.json")
    assert exact_bound(request, path) == quick_bound(request, path)


@pytest.mark.parametrize("text", ["a", "", "The quick brown fox", "é🙂"])
def test_prompts_are_counted_with_what_a_tokenizer_adds(smollm2_dir, text):
    path = smollm2_dir / "tokenizer.json"
    num_ids = len(AutoTokenizer.from_pretrained(smollm2_dir)(text).input_ids)
    request = parsed(parse_completion, prompt=text, max_tokens=1)
    assert quick_bound(request, entry()).input_tokens >= num_ids + 2
    assert exact_bound(request, entry(path)).input_tokens == num_ids


def test_an_embedding_models_marks_are_counted(minilm_dir):
    texts = ["a", "The quick brown fox"]
    ids = AutoTokenizer.from_pretrained(minilm_dir)(texts).input_ids
    request = parsed(parse_embedding, input=texts)
    bound = exact_bound(request, entry(minilm_dir / "tokenizer.json"))
    assert bound == TokenBound(sum(map(len, ids)), 0)


LONG = "x" * 60_000
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
HIDDEN = {
    "arguments": {"tool_calls": [{**CALL, "function": {"name": "f", "arguments": LONG}}]},
    "names of calls": {
        "tool_calls": [{**CALL, "function": {"name": "f" * 60, "arguments": "{}"}}] * 100
    },
    "reasoning": {"reasoning_content": LONG},
    "refusal": {"refusal": LONG},
}


@pytest.mark.parametrize("name", HIDDEN)
def test_whatever_a_message_has_is_counted(name):
    message = {"role": "assistant", "content": "hi", **HIDDEN[name]}
    messages = [{"role": "user", "content": "hi"}, message]
    request = parsed(parse_chat, messages=messages, max_tokens=1)
    large = replace(entry(), max_model_len=10**6)
    assert quick_bound(request, large).input_tokens >= 6000
    assert request.prompt_bytes >= 6000


def test_a_schema_is_counted():
    schema = {"name": "s", "schema": {"type": "object", "description": LONG}}
    wanted = {"type": "json_schema", "json_schema": schema}
    request = parsed(parse_chat, messages=CHATS["empty"], response_format=wanted)
    large = replace(entry(), max_model_len=10**6)
    assert quick_bound(request, large).input_tokens >= 60_000


@pytest.mark.parametrize("template", ["{{ 1 // 0 }}", "{{ messages.x.y }}", "{{ messages + 1 }}"])
def test_a_template_that_fails_leaves_the_bound_by_bytes(tmp_path, template):
    (tmp_path / "chat_template.jinja").write_text(template)
    (tmp_path / "tokenizer.json").touch()
    request = parsed(parse_chat, messages=CHATS["a question"])
    known = entry(tmp_path / "tokenizer.json")
    assert exact_bound(request, known) == quick_bound(request, known)


def test_parts_of_a_message_are_read_as_one_text(smollm2_dir):
    parts = [{"type": "text", "text": "What is"}, {"type": "text", "text": "this?"}]
    apart = parsed(parse_chat, messages=[{"role": "user", "content": parts}])
    whole = parsed(parse_chat, messages=[{"role": "user", "content": "What is\nthis?"}])
    path = entry(smollm2_dir / "tokenizer.json")
    assert exact_bound(apart, path) == exact_bound(whole, path)


def test_the_text_of_an_answer_is_counted(smollm2_dir):
    choices = [{"message": {"content": "Paris, of course."}}, {"text": "Paris"}]
    body = json.dumps({"choices": choices}).encode()
    assert count_answer(body, None) == 5 + 2
    ids = AutoTokenizer.from_pretrained(smollm2_dir)(["Paris, of course.", "Paris"]).input_ids
    assert count_answer(body, smollm2_dir / "tokenizer.json") == sum(map(len, ids))
    assert count_answer(b"not JSON", None) == count_answer(b'{"data": []}', None) == 0


def test_every_prompt_of_a_batch_counts():
    request = parsed(parse_completion, prompt=["abc", "de"], max_tokens=10, n=2)
    assert quick_bound(request, entry()) == TokenBound(3 + 2 + 2 * 2, 2 * 2 * 10)
    request = parsed(parse_completion, prompt=[[1, 2, 3], [4]], max_tokens=10)
    assert quick_bound(request, entry()) == TokenBound(4, 2 * 10)
    request = parsed(parse_embedding, input=[[1, 2], [3, 4], [5]])
    assert quick_bound(request, entry()) == TokenBound(5, 0)
    assert exact_bound(request, entry()) == TokenBound(5, 0)


def test_an_answer_without_a_bound_may_fill_the_context():
    request = parsed(parse_completion, prompt=[[1, 2, 3], [4]])
    assert quick_bound(request, entry()) == TokenBound(4, 2 * (CONTEXT - 2))


def test_an_image_may_fill_the_context_and_a_text_does_not():
    facts = ModelFacts(id="m", owned_by="us", is_multimodal=True)
    parts = [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}},
    ]
    for content, is_image in ((parts, True), (parts[:1], False), ("What is this?", False)):
        body = {"model": "m", "messages": [{"role": "user", "content": content}], "max_tokens": 5}
        request = parse_chat(json.dumps(body).encode(), lambda _: facts, 32)
        bound = quick_bound(request, entry(is_multimodal=True))
        assert (bound.input_tokens == CONTEXT) is is_image
