"""The onnx engine's flags say what its server does: it does each one, and refuses the rest."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiohttp import ClientSession
from aiohttp.test_utils import TestServer

from maas.edge.runtime.engine.options import EngineOptions
from maas.edge.runtime.server.app import EdgeServer
from maas.edge.runtime.server.serve import open_served
from maas.edge.runtime.server.served import Served, Serving
from maas.engines.contract import EngineCapabilities, for_model
from maas.engines.onnx import OnnxEngine
from tests.fakes.questions import CHAT, NOT_OFFERED, QUESTIONS


@pytest.fixture(scope="module")
def served(tiny: Path) -> Iterator[Served]:
    options = EngineOptions(num_threads=1, enable_spinning=False)
    served = open_served(tiny, "tiny", options, tool_call_parser="hermes")
    yield served
    served.engine.close()


@pytest.fixture
def flags() -> EngineCapabilities:
    return for_model(OnnxEngine.capabilities, "generate", has_chat=True, has_tools=True)


async def ask(served: Served, path: str, body: dict) -> tuple[int, str]:
    server = TestServer(EdgeServer(Serving(served)).make_app())
    await server.start_server()
    try:
        async with (
            ClientSession() as client,
            client.post(server.make_url(path), json={"model": "tiny", **body}) as answer,
        ):
            return answer.status, await answer.text()
    finally:
        await server.close()


@pytest.mark.parametrize("flag", QUESTIONS)
async def test_the_server_does_what_its_flags_say(
    served: Served, flags: EngineCapabilities, flag: str
) -> None:
    path, body = QUESTIONS[flag]
    status, text = await ask(served, path, body)
    if getattr(flags, flag):
        assert status == 200, text
        assert flag != "streaming" or text.rstrip().endswith("data: [DONE]")
        assert flag != "n" or len(json.loads(text)["choices"]) == 2
        assert flag != "logprobs" or json.loads(text)["choices"][0]["logprobs"]["content"]
    else:
        assert (status, json.loads(text)["error"]["code"]) == (400, "capability_missing")
        assert flag in text


async def test_what_is_not_offered_is_refused_by_name(served: Served) -> None:
    for name, path, body in NOT_OFFERED:
        status, text = await ask(served, path, body)
        assert status == 400, (name, text)
        assert name in json.loads(text)["error"]["message"], text


async def test_a_model_without_a_chat_template_refuses_chats(served: Served, tmp_path) -> None:
    path, body = QUESTIONS["chat"]
    bare = Served(served.name, served.engine, served.tokenizer, type(served.template)(None, {}))
    status, text = await ask(bare, path, body)
    assert (status, json.loads(text)["error"]["code"]) == (400, "capability_missing"), text
    assert path == CHAT
