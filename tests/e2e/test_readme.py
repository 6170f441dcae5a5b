"""The README's commands, run as they stand (with this platform's port, key and model)."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

pytestmark = pytest.mark.platform
README = (REPOSITORY / "README.md").read_text()
NODE_PACKAGE = "openai@7.57.0"


def _block(language: str) -> str:
    (block,) = re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)
    return block


@pytest.fixture
def user(platform, tmp_path) -> dict[str, str]:
    """The environment of a user whose home holds this platform's ``.maas``."""
    (tmp_path / ".maas").symlink_to(platform.home)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**platform.environment, "HOME": str(tmp_path), "PATH": path}


def _run(command: list[str], user, cwd: Path) -> str:
    done = subprocess.run(
        command, env=user, cwd=cwd, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


def test_curl_streams_the_answer(platform, user, tmp_path):
    script = _block("bash").replace("http://127.0.0.1:8080", platform.url)
    answer = _run(["bash", "-c", script], user, tmp_path)
    assert answer.rstrip().endswith("data: [DONE]")
    assert "Paris" in answer


def test_python_prints_the_answer(platform, user, tmp_path):
    script = _block("python").replace("http://127.0.0.1:8080", platform.url)
    assert "Paris" in _run([sys.executable, "-c", script], user, tmp_path)


def test_node_streams_the_answer(platform, user, tmp_path):
    if shutil.which("npm") is None:
        pytest.skip("this machine has no npm")
    cache = Path.home() / ".cache" / "maas-tests" / NODE_PACKAGE.replace("@", "-")
    if not (cache / "node_modules" / "openai").exists():
        cache.mkdir(parents=True, exist_ok=True)
        subprocess.run(
            ["npm", "install", "--no-audit", "--no-fund", "--silent", NODE_PACKAGE],
            cwd=cache,
            check=True,
            capture_output=True,
            timeout=180,
        )
    script = cache / f"readme-{os.getpid()}.mjs"
    script.write_text(_block("js").replace("http://127.0.0.1:8080", platform.url))
    try:
        assert "Paris" in _run(["node", str(script)], user, cache)
    finally:
        script.unlink()


def test_everyday_commands_work_as_written(platform, user, tmp_path):
    blocks = "\n".join(re.findall(r"```console\n(.*?)```", README, re.DOTALL))
    lines = [line.partition("  #")[0].strip() for line in blocks.splitlines()]
    commands = [line.split() for line in lines if line.startswith("maas ")]
    assert len(commands) >= 7
    for command in commands:
        said = _run(_harmless(command), user, REPOSITORY)
        assert said, command
        for job in re.findall(r"ftjob-\w+", said):
            # It would train beside the tests that come.
            _run(["maas", "job", "cancel", job], user, tmp_path)


def _harmless(command: list[str]) -> list[str]:
    """Return a command as written, but for those that wait for a person or start engines."""
    if command[1] == "chat":
        return [*command, "--once", "What is the capital of France?", "--max-tokens", "40"]
    # doctor's exit code says what it thinks of this machine; an export takes minutes. Their own
    # tests are elsewhere (e2e/test_onnx.py runs the README's export and its bundle).
    if command[1] in {"deploy", "doctor", "export"}:
        return [*command, "--help"]
    return command
