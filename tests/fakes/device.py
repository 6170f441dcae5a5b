"""A device: ``maas-edge`` in processes of its own, on a folder of its own."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

USER = [{"role": "user", "content": "hello"}]


@dataclass
class Device:
    """One device; ``home`` outlives its processes."""

    home: Path
    process: subprocess.Popen[bytes] | None = None
    url: str = ""
    log: Path = field(init=False)
    client: httpx.Client = field(default_factory=lambda: httpx.Client(timeout=30))

    def __post_init__(self) -> None:
        self.home.mkdir(parents=True, exist_ok=True)
        self.log = self.home.parent / f"{self.home.name}.log"

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "MAAS_EDGE_HOME": str(self.home)}

    def cli(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "maas.edge.runtime.cli", *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def start(self, *arguments: str) -> None:
        """Start the agent; it need not answer yet."""
        with self.log.open("ab") as log:
            place = log.tell()
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "maas.edge.runtime.cli", "agent", "--port", "0"),
                    *("--threads", "1", "--cool", "--pace", "full", *arguments),
                ],
                env=self.environment,
                stdout=log,
                stderr=log,
            )

        def said() -> str | None:
            lines = self.log.read_bytes()[place:].decode().splitlines()
            return next((line for line in lines if "the agent answers on" in line), None)

        self.url = self.wait(said, "the agent to listen").split()[-1].removesuffix("/v1")

    def stop(self) -> int:
        return self._end(signal.SIGTERM)

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def _end(self, number: int) -> int:
        if self.process is None:
            return 0
        self.process.send_signal(number)
        code = self.process.wait(20)
        self.process = None
        return code

    def wait(self, is_done: Callable[[], Any], what: str, timeout_s: float = 30) -> Any:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if result := is_done():
                return result
            if self.process is not None and self.process.poll() is not None:
                break
            time.sleep(0.02)
        raise AssertionError(f"waited for {what}; its log:\n{self.log.read_text()[-3000:]}")

    def chat(self, headers: dict[str, str] | None = None, **fields: Any) -> httpx.Response:
        body = {"model": "tiny", "messages": USER, "max_tokens": 4, "temperature": 0, **fields}
        return self.client.post(f"{self.url}/v1/chat/completions", json=body, headers=headers)

    def num_prompt_tokens(self) -> int | None:
        """What tells bundles apart here: how long their templates make a chat."""
        answer = self.chat()
        if answer.status_code != 200 or answer.headers["x-maas-served-by"] != "device":
            return None
        return answer.json()["usage"]["prompt_tokens"]

    def wait_answer(self) -> int:
        return self.wait(self.num_prompt_tokens, "an answer")

    def state(self) -> dict[str, Any]:
        return json.loads((self.home / "agent.json").read_text())
