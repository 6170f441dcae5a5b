"""The official Node SDK against the gateway's routes."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.api.conftest import RunningGateway
from tests.fakes.engine import FakeEngine
from tests.fakes.scripted_chat import ScriptedChat, responses_app, served

SDK_VERSION = "7.57.0"
NODE, NPM = shutil.which("node"), shutil.which("npm")
pytestmark = pytest.mark.skipif(NODE is None or NPM is None, reason="needs node and npm")


@pytest.fixture(scope="session")
def node_sdk(pytestconfig: pytest.Config) -> Path:
    """The SDK's folder, installed once per version beside pytest's other cached things."""
    assert pytestconfig.cache is not None
    folder = Path(pytestconfig.cache.mkdir(f"node-openai-{SDK_VERSION}")).resolve()
    if not (folder / "node_modules" / "openai" / "package.json").exists():
        command = [str(NPM), "install", "--prefix", str(folder), "--no-audit", "--no-fund"]
        subprocess.run([*command, f"openai@{SDK_VERSION}"], check=True, timeout=120)
    return folder


def run_node(
    script: str, sdk: Path, base_url: str, *, key: str = "k", model: str = "m"
) -> dict[str, object]:
    """Run a script beside this file; return the JSON object it prints."""
    env = {**os.environ, "BASE_URL": base_url, "API_KEY": key, "MODEL": model}
    command = [str(NODE), str(Path(__file__).with_name(script)), str(sdk / "index.js")]
    done = subprocess.run(command, check=False, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_node_streams_a_response_and_reads_a_refusal(node_sdk: Path) -> None:
    chat = ScriptedChat(
        answer=[
            {"choices": [{"delta": {"content": "Ye"}}]},
            {"choices": [{"delta": {"content": "s."}, "finish_reason": "stop"}]},
        ]
    )
    with served(responses_app(chat)) as base_url:
        seen = run_node("node_responses.mjs", node_sdk, base_url)
    assert seen == {
        "events": [
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
        ],
        "text": "Yes.",
        "status": "completed",
        "refused": {
            "status": 400,
            "param": "previous_response_id",
            "code": "capability_missing",
        },
    }


def test_node_drives_the_gateway(
    node_sdk: Path, gateway: RunningGateway, engine: FakeEngine
) -> None:
    gateway.deploy(engine, model="node-embedder", capabilities={"embeddings": True})
    url = f"{gateway.url}/v1"
    seen = run_node("node_gateway.mjs", node_sdk, url, key=gateway.key, model="tiny")
    text = "The capital of France is Paris."
    assert seen == {
        "models": ["tiny", "node-embedder"],
        "chat": text,
        "responses": text,
        "status": "completed",
        "embedding": True,
    }
