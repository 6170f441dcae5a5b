"""``/v1/responses`` through the whole gateway, with the unmodified SDK."""

import time
from collections.abc import Iterator

import openai
import pytest

from tests.api.conftest import RunningGateway
from tests.fakes.engine import FakeEngine

TEXT = "The capital of France is Paris."


@pytest.fixture
def client(gateway: RunningGateway) -> Iterator[openai.OpenAI]:
    url = f"{gateway.url}/v1"
    with openai.OpenAI(base_url=url, api_key=gateway.key, max_retries=0) as client:
        yield client


def test_create(client: openai.OpenAI, engine: FakeEngine) -> None:
    response = client.responses.create(model="tiny", input="Hi", instructions="Be kind.")
    assert response.output_text == TEXT
    assert response.id.startswith("resp_")
    assert response.model == "tiny"
    assert response.usage is not None
    assert response.usage.output_tokens == 7
    assert response._request_id
    assert engine.paths == ["/v1/chat/completions"]
    assert [message["role"] for message in engine.requests[0]["messages"]] == ["system", "user"]


def test_stream(client: openai.OpenAI, engine: FakeEngine) -> None:
    with client.responses.stream(model="tiny", input="Hi") as stream:
        deltas = [event.delta for event in stream if event.type == "response.output_text.delta"]
        final = stream.get_final_response()
    assert "".join(deltas) == final.output_text == TEXT
    assert len(deltas) == 7
    assert final.usage is not None
    assert final.usage.output_tokens == 7


@pytest.mark.parametrize("prompt", ["die", "cut", "engine-error"])
def test_engine_that_dies_fails_the_stream(
    client: openai.OpenAI, engine: FakeEngine, prompt: str
) -> None:
    events = list(client.responses.create(model="tiny", input=prompt, stream=True))
    assert [event.type for event in events][-2:] == ["error", "response.failed"]


def test_client_that_leaves_aborts_the_engine(client: openai.OpenAI, engine: FakeEngine) -> None:
    with client.responses.create(model="tiny", input="slow", stream=True) as stream:
        for event in stream:
            if event.type == "response.output_text.delta":
                break
    deadline = time.monotonic() + 5
    while engine.num_aborts == 0 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert engine.num_aborts == 1


def test_unknown_model_is_not_found(client: openai.OpenAI, engine: FakeEngine) -> None:
    with pytest.raises(openai.NotFoundError, match="tiny"):
        client.responses.create(model="nothing", input="Hi")
    assert engine.paths == []


def test_answer_over_the_context_names_its_field(client: openai.OpenAI, engine: FakeEngine) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(model="tiny", input="Hi", max_output_tokens=5000)
    assert caught.value.code == "context_length_exceeded"
    assert caught.value.param == "max_output_tokens"
    assert engine.paths == []


def test_refusal_has_a_request_id(client: openai.OpenAI, engine: FakeEngine) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(model="tiny", input="Hi", store=True)
    assert caught.value.param == "store"
    assert caught.value.request_id
    assert engine.paths == []


def test_wrong_key_is_told_before_a_wrong_body(client: openai.OpenAI, engine: FakeEngine) -> None:
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="no").responses.create(model="tiny", input="x", store=True)
    assert engine.paths == []
