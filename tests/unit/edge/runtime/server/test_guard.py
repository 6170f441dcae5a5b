"""Web pages neither ask the server nor read from it, but those that are allowed."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from tokenizers import Tokenizer

from maas.core.errors import ConfigError
from maas.edge.runtime.server.app import EdgeServer
from maas.edge.runtime.server.guard import Guard, allowed_origins, is_loopback
from maas.edge.runtime.server.serve import Address, listening
from maas.edge.runtime.server.served import Served, Serving
from maas.edge.runtime.server.templates import load_template
from tests.fakes.edge_engine import FakeEdgeEngine
from tests.unit.edge.conftest import write_tiny_tokenizer

CHAT = "/v1/chat/completions"
ASK = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}
PAGE = "http://localhost:3000"


@pytest.fixture
def served(tmp_path: Path) -> Served:
    write_tiny_tokenizer(tmp_path)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    return Served("tiny", FakeEdgeEngine(), tokenizer, load_template(tmp_path))


@asynccontextmanager
async def guarded(served: Served, guard: Guard) -> AsyncIterator[httpx.AsyncClient]:
    app = EdgeServer(Serving(served)).make_app()
    guard.add_to(app)
    async with (
        listening(app, Address("127.0.0.1", 0)) as port,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=10) as client,
    ):
        yield client


def code_of(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


async def test_programs_of_this_machine_are_answered(served):
    async with guarded(served, Guard("127.0.0.1")) as client:
        own = f"{client.base_url}".rstrip("/")
        for headers in (
            {},
            {"host": "localhost:8081"},
            {"host": "[::1]"},
            {"host": "127.0.0.2:1"},
            {"content-type": "application/json; charset=utf-8"},
            {"origin": own},
        ):
            answer = await client.post(CHAT, json=ASK, headers=headers)
            assert answer.status_code == 200, headers
            assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8081", "127.0.0.1.evil.example", "[::1", "", "10.0.0.1"]
)
async def test_a_name_that_is_not_this_machine_s_is_refused(served, host):
    async with guarded(served, Guard("127.0.0.1")) as client:
        for answer in (
            await client.get("/v1/models", headers={"host": host}),
            await client.post(CHAT, json=ASK, headers={"host": host}),
        ):
            assert code_of(answer) == (403, "forbidden_origin")


async def test_a_server_for_others_is_called_as_they_like_and_by_no_page(served):
    async with guarded(served, Guard("0.0.0.0")) as client:
        headers = {"host": "box.lan:8081"}
        assert (await client.get("/v1/models", headers=headers)).status_code == 200
        headers["origin"] = "http://evil.example"
        assert (await client.get("/v1/models", headers=headers)).status_code == 403


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost:3000", "//["])
async def test_a_page_of_another_origin_is_refused(served, origin):
    async with guarded(served, Guard("127.0.0.1")) as client:
        for answer in (
            await client.post(CHAT, json=ASK, headers={"origin": origin}),
            await client.request("OPTIONS", CHAT, headers={"origin": origin}),
        ):
            assert code_of(answer) == (403, "forbidden_origin")
            assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize("kind", [None, "text/plain", "application/x-www-form-urlencoded"])
async def test_a_body_that_a_page_can_send_unasked_is_refused(served, kind):
    async with guarded(served, Guard("127.0.0.1")) as client:
        headers = {"content-type": kind} if kind else {}
        answer = await client.post(CHAT, content=json.dumps(ASK), headers=headers)
        assert code_of(answer) == (415, "unsupported_media_type")
        assert "Content-Type: application/json" in answer.json()["error"]["message"]


@pytest.mark.parametrize("stream", [False, True])
async def test_an_allowed_page_asks_first_and_reads_the_answer(served, stream):
    async with guarded(served, Guard("127.0.0.1", allowed_origins([f"{PAGE}/"]))) as client:
        headers = {
            "origin": PAGE,
            "access-control-request-method": "POST",
            "access-control-request-headers": "content-type, x-maas-cloud",
        }
        asked = await client.request("OPTIONS", CHAT, headers=headers)
        assert asked.status_code == 204
        assert asked.headers["access-control-allow-headers"] == "content-type, x-maas-cloud"
        assert "POST" in asked.headers["access-control-allow-methods"]
        answer = await client.post(CHAT, json={**ASK, "stream": stream}, headers={"origin": PAGE})
        assert answer.status_code == 200
        for page in (asked, answer):
            assert page.headers["access-control-allow-origin"] == PAGE
            assert page.headers["vary"] == "Origin"
        other = await client.post(CHAT, json=ASK, headers={"origin": "http://localhost:3001"})
        assert other.status_code == 403


@pytest.mark.parametrize("url", ["*", "localhost:3000", "http://a/b", "http://u@a", "ftp://a", ""])
def test_what_is_no_origin_cannot_be_allowed(url):
    with pytest.raises(ConfigError, match="--allow-origin"):
        allowed_origins([url])


def test_loopback_addresses():
    ours, others = ("localhost", "127.0.0.1", "127.3.2.1", "::1"), ("0.0.0.0", "10.0.0.1", "a", "")
    assert [is_loopback(host) for host in (*ours, *others)] == [True] * 4 + [False] * 4
