"""The platform is scripted through its command line; here a small fake of that."""

import sys
from pathlib import Path

import aiohttp
import psutil
import pytest

from benchmarks.gpu.front import platform_in_front
from benchmarks.gpu.load import Target
from maas.core.errors import Unavailable

# Serves only what was deployed, only with the key that was made, as the platform does.
FAKE_MAAS = """
import json, os, sys
from pathlib import Path
from aiohttp import web

home = Path(os.environ["MAAS_HOME"])
deployed, keys = home / "deployed.json", home / "keys.json"


async def complete(request):
    if request.headers.get("Authorization") != "Bearer " + json.loads(keys.read_text()):
        return web.Response(status=401)
    if json.loads(deployed.read_text())["model"] != (await request.json())["model"]:
        return web.Response(status=404)
    return web.json_response({})


async def healthz(request):
    return web.Response()


arguments = sys.argv[1:]
if arguments[0] == "up":
    assert os.environ["MAAS_MODEL"] == "none"
    app = web.Application()
    app.router.add_get("/healthz", healthz)
    app.router.add_post("/v1/completions", complete)
    web.run_app(app, host="127.0.0.1", port=int(os.environ["MAAS_PORT"]), print=None)
elif arguments[0] == "deploy":
    if "refuse" in arguments:
        sys.exit("error: that model is refused")
    values = dict(zip(arguments[2:-1:2], arguments[3:-1:2]))
    assert values["--engine"] == "external" and values["--url"].startswith("http://")
    deployed.write_text(json.dumps({"model": values["--model"]}))
    print(json.dumps({"id": "dep_1"}))
elif arguments[0] == "key":
    keys.write_text(json.dumps("sk-1"))
    print(json.dumps({"key": "sk-1"}))
"""


@pytest.fixture
def command(tmp_path: Path) -> tuple[str, ...]:
    script = tmp_path / "maas.py"
    script.write_text(FAKE_MAAS)
    return (sys.executable, str(script))


def running(command: tuple[str, ...]) -> list[psutil.Process]:
    children = psutil.Process().children(recursive=True)
    return [child for child in children if _is_running(child, command)]


def _is_running(process: psutil.Process, command: tuple[str, ...]) -> bool:
    try:
        return command[1] in process.cmdline()
    except psutil.NoSuchProcess:
        return False


async def test_the_platform_serves_the_engine_under_a_key_of_its_own_and_is_stopped(
    command: tuple[str, ...],
) -> None:
    engine = Target("vllm", "http://127.0.0.1:1", ("bench",))
    async with aiohttp.ClientSession() as client:
        async with platform_in_front(client, engine, command=command) as target:
            assert (target.name, target.key, target.models) == ("platform", "sk-1", ("bench",))
            assert target.url != engine.url
            assert running(command)
        assert not running(command)


async def test_a_refused_deployment_says_why_and_leaves_nothing_running(
    command: tuple[str, ...],
) -> None:
    engine = Target("vllm", "http://127.0.0.1:1", ("refuse",))
    async with aiohttp.ClientSession() as client:
        with pytest.raises(Unavailable, match="that model is refused"):
            async with platform_in_front(client, engine, command=command):
                pass
    assert not running(command)


async def test_a_platform_that_ends_at_once_is_not_waited_for(tmp_path: Path) -> None:
    script = tmp_path / "maas.py"
    script.write_text("import sys; sys.exit('error: port taken')")
    engine = Target("vllm", "http://127.0.0.1:1", ("bench",))
    async with aiohttp.ClientSession() as client:
        with pytest.raises(Unavailable, match="port taken"):
            async with platform_in_front(client, engine, command=(sys.executable, str(script))):
                pass
