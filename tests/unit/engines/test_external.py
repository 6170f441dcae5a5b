import pytest
from aiohttp import web

from maas.core.errors import ConfigError, EngineUnreachable
from maas.engines.external import ExternalEngine, declared, resolve_model

EXTERNAL = ExternalEngine()


@pytest.fixture
async def serve():
    runners = []

    async def start(routes: dict[str, object], *, key: str | None = None) -> str:
        async def answer(request: web.Request) -> web.Response:
            if key and request.headers.get("Authorization") != f"Bearer {key}":
                return web.Response(status=401)
            content = routes.get(request.path)
            if content is None:
                return web.Response(status=404)
            if isinstance(content, str):
                return web.Response(text=content)
            return web.json_response(content)

        app = web.Application()
        app.router.add_route("*", "/{path:.*}", answer)
        runner = web.AppRunner(app)
        await runner.setup()
        runners.append(runner)
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        return f"http://{host}:{port}"

    yield start
    for runner in runners:
        await runner.cleanup()


def models(*ids: str) -> dict[str, object]:
    return {"/v1/models": {"object": "list", "data": [{"id": name} for name in ids]}}


async def test_exact_name_is_taken_among_several(serve, client):
    url = await serve(models("a", "b"))
    assert await resolve_model(client, url, wanted="b") == "b"


async def test_only_model_is_taken_whatever_its_name(serve, client):
    url = await serve(models("org/thing"))
    assert await resolve_model(client, url, wanted="b") == "org/thing"


async def test_several_others_are_refused_with_their_names(serve, client):
    url = await serve(models("x", "y"))
    with pytest.raises(ConfigError, match="lists: x, y"):
        await resolve_model(client, url, wanted="b")


async def test_what_the_operator_said_is_believed_of_a_server_that_answers(serve, client):
    url = await serve(models("a", "b"))
    assert await resolve_model(client, url, wanted="b", engine_model="z") == "z"
    with pytest.raises(EngineUnreachable):
        await resolve_model(client, "http://127.0.0.1:9", wanted="b", engine_model="z")


async def test_dead_server_is_unreachable(client):
    url = "http://127.0.0.1:9"
    with pytest.raises(EngineUnreachable):
        await resolve_model(client, url, wanted="b")
    assert not await EXTERNAL.is_ready(client, url)
    with pytest.raises(EngineUnreachable):
        await EXTERNAL.load(client, url)


async def test_secret_travels_as_the_clients_header(serve, client):
    url = await serve(models("a"), key="k")
    assert not await EXTERNAL.is_ready(client, url)
    client.headers["Authorization"] = "Bearer k"
    assert await EXTERNAL.is_ready(client, url)


async def test_health_is_enough_where_models_are_not_listed(serve, client):
    url = await serve({"/health": "ok"})
    assert await EXTERNAL.is_ready(client, url)


async def test_load_is_read_from_vllm_and_unknown_elsewhere(serve, client):
    vllm = await serve({"/metrics": "vllm:num_requests_running 3.0\n"})
    assert (await EXTERNAL.load(client, vllm)).num_running == 3
    other = await serve(models("a"))
    assert (await EXTERNAL.load(client, other)).num_tokens_total is None


def test_declared_flags_change_the_default_and_unknown_ones_are_refused():
    assert declared({"embeddings": True}).embeddings
    assert not declared({"tools": False}).tools
    with pytest.raises(ConfigError, match="no capability 'magic'"):
        declared({"magic": True})
