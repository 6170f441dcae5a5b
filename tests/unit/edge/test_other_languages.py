"""A folder onnxruntime-genai loads in other languages: the C++ example, built and run."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("g++") is None:
        pytest.skip("this machine has no C++ compiler")
    out = tmp_path_factory.mktemp("cpp") / "chat"
    build = REPOSITORY / "deploy" / "edge" / "build.sh"
    subprocess.run([str(build), str(out), sys.executable], check=True, capture_output=True)
    return out


def test_the_cpp_example_answers(chat: Path, tiny: Path) -> None:
    done = subprocess.run([chat, tiny, 'say "hi"'], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    # Random weights: something, and the same each time.
    assert len(done.stdout) > 10
    again = subprocess.run([chat, tiny, 'say "hi"'], capture_output=True, check=False)
    assert again.stdout == done.stdout


def test_the_cpp_example_says_what_is_missing(chat: Path, tmp_path: Path) -> None:
    done = subprocess.run([chat, tmp_path, "x"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "genai_config.json" in done.stderr
