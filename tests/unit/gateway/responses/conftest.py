"""The endpoint in front of a chat app that answers as it is told."""

from collections.abc import Iterator

import pytest

from maas.gateway.responses.routes import ResponsesApp
from tests.fakes.scripted_chat import ScriptedChat, responses_app, served


@pytest.fixture
def chat() -> ScriptedChat:
    return ScriptedChat()


@pytest.fixture
def app(chat: ScriptedChat) -> ResponsesApp:
    return responses_app(chat)


@pytest.fixture
def base_url(app: ResponsesApp) -> Iterator[str]:
    with served(app) as url:
        yield url
