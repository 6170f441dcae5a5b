"""The unmodified OpenAI SDK against the endpoint: create, stream, parse, tools."""

from collections.abc import Iterator
from typing import Any

import openai
import pytest
from pydantic import BaseModel

from tests.fakes.scripted_chat import ScriptedChat

Chunk = dict[str, Any]


class City(BaseModel):
    """What the structured answer must be."""

    name: str
    country: str


def piece(finish: str | None = None, **delta: Any) -> Chunk:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}


USAGE: Chunk = {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}
WEATHER: Any = {
    "type": "function",
    "name": "weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    "strict": False,
}


def completion(finish: str = "stop", **message: Any) -> Chunk:
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish}
    return {"choices": [choice], "usage": USAGE["usage"]}


@pytest.fixture
def client(base_url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=base_url, api_key="k", max_retries=0) as client:
        yield client


def test_create(client: openai.OpenAI, chat: ScriptedChat) -> None:
    chat.answer = completion(content="Paris.")
    response = client.responses.create(model="m", input="Capital of France?")
    assert response.output_text == "Paris."
    assert response.status == "completed"
    assert response.usage is not None
    assert response.usage.total_tokens == 5
    assert response._request_id == "req-1"


def test_create_cut_short(client: openai.OpenAI, chat: ScriptedChat) -> None:
    chat.answer = completion("length", content="Par")
    response = client.responses.create(model="m", input="x", max_output_tokens=1)
    assert response.status == "incomplete"
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"
    assert chat.bodies[0]["max_tokens"] == 1


def test_stream_of_events(client: openai.OpenAI, chat: ScriptedChat) -> None:
    chat.answer = [piece(content="Pa"), piece("stop", content="ris."), USAGE]
    events = list(client.responses.create(model="m", input="x", stream=True))
    assert [event.type for event in events] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert events[-1].type == "response.completed"
    assert events[-1].response.output_text == "Paris."


def test_stream_helper_gives_the_final_response(client: openai.OpenAI, chat: ScriptedChat) -> None:
    chat.answer = [piece(reasoning="Hm."), piece(content="Pa"), piece("stop", content="ris.")]
    with client.responses.stream(model="m", input="x") as stream:
        deltas = [event.delta for event in stream if event.type == "response.output_text.delta"]
        final = stream.get_final_response()
    assert deltas == ["Pa", "ris."]
    assert final.output_text == "Paris."
    assert [item.type for item in final.output] == ["reasoning", "message"]


def test_parse_into_a_model(client: openai.OpenAI, chat: ScriptedChat) -> None:
    chat.answer = completion(content='{"name":"Paris","country":"France"}')
    response = client.responses.parse(model="m", input="x", text_format=City)
    assert response.output_parsed == City(name="Paris", country="France")
    schema = chat.bodies[0]["response_format"]["json_schema"]
    assert schema["name"] == "City"
    assert schema["schema"]["required"] == ["name", "country"]


def test_parse_in_a_stream(client: openai.OpenAI, chat: ScriptedChat) -> None:
    chat.answer = [piece(content='{"name":"Paris",'), piece("stop", content='"country":"F"}')]
    with client.responses.stream(model="m", input="x", text_format=City) as stream:
        assert stream.get_final_response().output_parsed == City(name="Paris", country="F")


@pytest.mark.parametrize("is_streamed", [False, True])
def test_tools_there_and_back(client: openai.OpenAI, chat: ScriptedChat, is_streamed: bool) -> None:
    call = {"index": 0, "id": "call_1", "function": {"name": "weather", "arguments": "{}"}}
    thought = {"reasoning": "Look it up.", "tool_calls": [call]}
    chat.answer = [piece("tool_calls", **thought)] if is_streamed else completion(**thought)
    history: list[Any] = [{"role": "user", "content": "Weather in Rome?"}]
    if is_streamed:
        with client.responses.stream(model="m", input=history, tools=[WEATHER]) as stream:
            first = stream.get_final_response()
    else:
        first = client.responses.create(model="m", input=history, tools=[WEATHER])
    asked = [item for item in first.output if item.type == "function_call"]
    assert [(item.name, item.call_id) for item in asked] == [("weather", "call_1")]

    # The whole output goes back, reasoning and all, as OpenAI's guide does it.
    history += first.output
    history.append({"type": "function_call_output", "call_id": "call_1", "output": "21"})
    chat.answer = completion(content="21 degrees.")
    second = client.responses.create(model="m", input=history, tools=[WEATHER])
    assert second.output_text == "21 degrees."
    assert [message["role"] for message in chat.bodies[1]["messages"]] == [
        "user",
        "assistant",
        "tool",
    ]


def test_parsed_output_can_be_handed_back(client: openai.OpenAI, chat: ScriptedChat) -> None:
    chat.answer = completion(content='{"name":"Paris","country":"France"}')
    first = client.responses.parse(model="m", input="x", text_format=City)
    history: list[Any] = [*first.output, {"role": "user", "content": "And?"}]
    client.responses.create(model="m", input=history)
    assert chat.bodies[1]["messages"][0]["content"] == '{"name":"Paris","country":"France"}'


def test_logprobs(client: openai.OpenAI, chat: ScriptedChat) -> None:
    position = {"token": "é", "logprob": -0.5, "bytes": None, "top_logprobs": []}
    chat.answer = completion(content="é")
    chat.answer["choices"][0]["logprobs"] = {"content": [position]}
    response = client.responses.create(
        model="m", input="x", include=["message.output_text.logprobs"], top_logprobs=2
    )
    message = response.output[0]
    assert message.type == "message"
    part = message.content[0]
    assert part.type == "output_text"
    assert part.logprobs is not None
    assert part.logprobs[0].bytes == list("é".encode())
    assert (chat.bodies[0]["logprobs"], chat.bodies[0]["top_logprobs"]) == (True, 2)


def test_refused_field_is_a_bad_request(client: openai.OpenAI, chat: ScriptedChat) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(model="m", input="x", previous_response_id="resp_1")
    assert caught.value.param == "previous_response_id"
    assert chat.bodies == []


def test_engine_that_dies_is_told_apart_from_an_answer(
    client: openai.OpenAI, chat: ScriptedChat
) -> None:
    chat.answer = [piece(content="Half"), {"error": {"message": "gone", "code": "engine_error"}}]
    events = list(client.responses.create(model="m", input="x", stream=True))
    assert [event.type for event in events][-2:] == ["error", "response.failed"]
    assert events[-1].type == "response.failed"
    assert events[-1].response.error is not None
    assert events[-1].response.error.message == "gone"


def test_client_that_leaves_is_seen_by_the_chat_app(
    client: openai.OpenAI, chat: ScriptedChat
) -> None:
    chat.answer, chat.waits = [piece(content="a")], True
    with client.responses.create(model="m", input="x", stream=True) as stream:
        next(iter(stream))
    assert chat.left.wait(5)
