"""The endpoint, message by message: what the chat app sees and what the client gets."""

import json
from typing import Any

import pytest
from starlette.types import Message, Scope

from maas.gateway.responses.routes import ResponsesApp
from maas.gateway.responses.stream import Origin
from tests.fakes.scripted_chat import ScriptedChat

BODY = {"model": "m", "input": "hi"}
KEY = (b"authorization", b"Bearer k")
HEADERS = [KEY, (b"content-length", b"9"), (b"accept-encoding", b"gzip")]


async def ask(
    app: ResponsesApp, *messages: Message, sent: list[Message] | None = None
) -> list[Message]:
    """Send these messages and return what comes back."""
    waiting = list(messages)
    sent = [] if sent is None else sent

    async def receive() -> Message:
        return waiting.pop(0) if waiting else {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        # As a server does: nothing may follow the last piece of the body.
        assert not sent or sent[-1].get("more_body", True), message
        sent.append(message)

    scope = {"type": "http", "path": "/v1/responses", "raw_path": b"/x", "headers": HEADERS}
    await app(scope, receive, send)
    return sent


def request(body: dict[str, Any] | bytes) -> Message:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return {"type": "http.request", "body": raw, "more_body": False}


def completion(text: str) -> dict[str, Any]:
    return {"choices": [{"message": {"content": text}, "finish_reason": "stop"}]}


async def test_chat_app_sees_a_chat_request(app: ResponsesApp, chat: ScriptedChat) -> None:
    chat.answer = completion("yes")
    await ask(app, request(BODY))
    assert chat.scopes[0]["path"] == "/v1/chat/completions"
    assert chat.scopes[0]["headers"] == HEADERS[:2]
    assert chat.bodies == [
        {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": False}
    ]


async def test_answer_keeps_the_headers_of_the_chat_app(
    app: ResponsesApp, chat: ScriptedChat
) -> None:
    chat.answer = completion("yes")
    start, body = await ask(app, request(BODY))
    headers = dict(start["headers"])
    assert headers[b"x-request-id"] == b"req-1"
    assert int(headers[b"content-length"]) == len(body["body"])
    assert len(start["headers"]) == len(headers)
    assert json.loads(body["body"])["output"][0]["content"][0]["text"] == "yes"


async def test_a_stream_ends_once(app: ResponsesApp, chat: ScriptedChat) -> None:
    chat.answer = [{"choices": [{"delta": {"content": "yes"}, "finish_reason": "stop"}]}]
    sent = await ask(app, request({**BODY, "stream": True}))
    assert dict(sent[0]["headers"])[b"content-type"].startswith(b"text/event-stream")
    body = b"".join(message.get("body", b"") for message in sent)
    assert body.count(b"event: response.completed") == 1
    assert sent[-1]["more_body"] is False


async def test_a_body_in_pieces_is_read_whole(app: ResponsesApp, chat: ScriptedChat) -> None:
    chat.answer = completion("yes")
    raw = json.dumps(BODY).encode()
    first = {"type": "http.request", "body": raw[:5], "more_body": True}
    await ask(app, first, request(raw[5:]))
    assert chat.bodies[0]["model"] == "m"


async def test_a_refused_body_never_reaches_the_chat_app(
    app: ResponsesApp, chat: ScriptedChat
) -> None:
    start, body = await ask(app, request({**BODY, "store": True}))
    assert start["status"] == 400
    assert json.loads(body["body"])["error"]["param"] == "store"
    assert dict(start["headers"])[b"x-request-id"] == b"req-1"
    assert len(start["headers"]) == len(dict(start["headers"]))
    assert chat.bodies == []


async def test_a_body_over_the_limit_is_refused(app: ResponsesApp, chat: ScriptedChat) -> None:
    start, _ = await ask(app, request({**BODY, "input": "x" * 10_001}))
    assert start["status"] == 413
    assert (b"connection", b"close") in start["headers"]
    assert chat.bodies == []


async def test_a_client_that_leaves_while_sending_starts_nothing(
    app: ResponsesApp, chat: ScriptedChat
) -> None:
    half = {"type": "http.request", "body": b'{"model":', "more_body": True}
    await ask(app, half, {"type": "http.disconnect"})
    assert chat.bodies == []


@pytest.mark.parametrize(
    ("param", "named"),
    [
        ("model", "model"),
        ("messages", "input"),
        ("messages[0].content", "input"),
        ("max_tokens", "max_output_tokens"),
        ("response_format.json_schema.schema", "text.format"),
        (None, None),
    ],
)
async def test_an_error_of_the_chat_app_names_what_was_sent_here(
    app: ResponsesApp, chat: ScriptedChat, param: str | None, named: str | None
) -> None:
    error = {"message": f"{param}: no", "type": "t", "param": param, "code": "c"}
    chat.status, chat.answer = 404, {"error": error}
    start, body = await ask(app, request({**BODY, "stream": True}))
    assert start["status"] == 404
    answer = json.loads(body["body"])["error"]
    assert (answer["param"], answer["type"], answer["code"]) == (named, "t", "c")
    assert str(named) in answer["message"]
    assert (b"x-request-id", b"req-1") in start["headers"]


async def test_an_error_that_is_not_json_is_passed_on(
    app: ResponsesApp, chat: ScriptedChat
) -> None:
    chat.status, chat.answer = 500, []
    start, body = await ask(app, request(BODY))
    assert (start["status"], body["body"]) == (500, b"data: [DONE]\n\n")


async def test_a_key_is_refused_before_the_body_is_read() -> None:
    async def refuse(scope: Scope, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 401, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    origin = Origin(new_id=str, now=int)
    app = ResponsesApp(refuse, render_error=_never, origin=origin, max_body_bytes=9)
    start, body = await ask(app, request(b"x" * 100))
    assert (start["status"], body["body"]) == (401, b"{}")


def _never(*_: object) -> tuple[int, bytes]:
    raise AssertionError


async def test_an_answer_that_is_no_completion_is_a_502(
    app: ResponsesApp, chat: ScriptedChat
) -> None:
    chat.answer = {"choices": []}
    start, body = await ask(app, request(BODY))
    assert start["status"] == 502
    assert json.loads(body["body"])["error"]["code"] == "engine_error"


async def test_a_stream_the_chat_app_breaks_off_ends_as_failed(
    app: ResponsesApp, chat: ScriptedChat
) -> None:
    chat.answer, chat.dies = [{"choices": [{"delta": {"content": "Half"}}]}], True
    sent: list[Message] = []
    with pytest.raises(ConnectionResetError):
        await ask(app, request({**BODY, "stream": True}), sent=sent)
    body = b"".join(message.get("body", b"") for message in sent)
    assert b"event: response.failed" in body
    assert b"event: response.completed" not in body
    assert sent[-1]["more_body"] is False
