"""``maas chat`` through the gateway, in front of a fake engine; the terminal is a real one."""

import json
import os
import pty
import subprocess
import sys
import threading
import time

import pytest
from typer.testing import CliRunner

from maas.cli.chat import Answer, Conversation, error_of
from maas.cli.main import app
from maas.core import errors
from tests.fakes.engine import FakeEngine, fake_engine

WORDS = "The capital of France is Paris."


class Terminal:
    """A ``maas chat`` of its own, on the other end of a pseudo-terminal."""

    def __init__(self, *arguments: str) -> None:
        self.fd, child = pty.openpty()
        # setsid gives it the terminal for its own, so that Ctrl-C is a signal.
        self.process = subprocess.Popen(
            ["setsid", "--ctty", sys.executable, "-m", "maas", "chat", *arguments],
            stdin=child,
            stdout=child,
            stderr=child,
            env={**os.environ, "TERM": "dumb"},
        )
        os.close(child)
        self._seen = bytearray()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self.fd, 4096)
            except OSError:  # the other end is closed
                return
            self._seen += data

    @property
    def seen(self) -> str:
        return self._seen.decode(errors="replace").replace("\r\n", "\n")

    def type(self, keys: str) -> None:
        os.write(self.fd, keys.encode())

    def wait_for(self, text: str, *, times: int = 1) -> None:
        deadline = time.monotonic() + 20
        while self.seen.count(text) < times:
            assert time.monotonic() < deadline, self.seen
            assert self.process.poll() is None, self.seen
            time.sleep(0.02)

    def end(self) -> int:
        status = self.process.wait(10)
        self._reader.join(5)
        os.close(self.fd)
        return status


@pytest.fixture
def address(gateway):
    return ("--url", gateway.url, "--key", gateway.key)


def invoke(*arguments: str):
    return CliRunner().invoke(app, ["chat", *arguments])


def test_one_question_prints_the_answer_alone(gateway, engine: FakeEngine, address):
    done = invoke("tiny", "--once", "hello", "--system", "Be brief.", "--max-tokens", "9", *address)
    assert (done.exit_code, done.stdout) == (0, WORDS + "\n")
    sent = engine.requests[-1]
    assert sent["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "hello"},
    ]
    assert sent["max_tokens"] == 9


def test_json_has_answer_usage_and_times(gateway, engine: FakeEngine, address):
    done = invoke("tiny", "--once", "hello", "--json", *address)
    result = json.loads(done.stdout)
    assert result["answer"] == WORDS
    assert result["finish_reason"] == "stop"
    assert result["usage"]["completion_tokens"] == 7
    assert 0 < result["ttft_s"] < 10
    assert result["tokens_per_s"] > 0


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        (("nobody", "--once", "x"), errors.ModelNotFound, "tiny"),
        (("tiny", "--once", "x", "--key", "wrong"), errors.AuthenticationFailed, "key"),
        (("tiny", "--once", "die"), errors.MaasError, ""),
        (("tiny", "--once", "engine-error"), errors.EngineError, ""),
        (("tiny", "--once", "x", "--max-tokens", "9999"), errors.InvalidRequest, "context"),
    ],
)
def test_failures_are_errors_of_ours(gateway, engine: FakeEngine, address, arguments, kind, words):
    done = invoke(arguments[0], *address, *arguments[1:])
    assert isinstance(done.exception, kind)
    assert words in done.exception.message
    assert "\n" not in done.exception.message


def test_no_platform_says_how_to_start_one(tmp_path):
    done = invoke("tiny", "--once", "x", "--url", "http://127.0.0.1:9", "--key", "k")
    assert isinstance(done.exception, errors.Unavailable)
    assert "make up" in done.exception.message


def test_no_key_says_where_it_was_looked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("MAAS_HOME", str(tmp_path))
    done = invoke("tiny", "--once", "x")
    assert isinstance(done.exception, errors.ConfigError)
    assert str(tmp_path / "admin.key") in done.exception.message


def test_json_without_a_question_is_refused(address):
    done = invoke("tiny", "--json", "--url", "http://127.0.0.1:9", "--key", "k")
    assert isinstance(done.exception, errors.ConfigError)


def test_conversation_goes_on_is_reset_and_ctrl_c_stops_one_answer_only(gateway, address):
    with fake_engine() as engine:
        gateway.deploy(engine, model="talker")
        terminal = Terminal("talker", *address)
        terminal.wait_for("> ")
        terminal.type("say:Hello|you\n")
        terminal.wait_for("tokens/s")
        terminal.type("slow\n")
        terminal.wait_for("The")
        terminal.type("\x03")
        terminal.wait_for("stopped")
        terminal.type("/system Be kind.\n")
        terminal.wait_for("set")
        terminal.type("say:Third\n")
        terminal.wait_for("first after", times=2)
        terminal.type("/reset\n")
        terminal.wait_for("anew")
        terminal.type("say:Fourth\n")
        terminal.wait_for("first after", times=3)
        terminal.type("/exit\n")
        assert terminal.end() == 0, terminal.seen
        assert engine.num_aborts == 1
        roles = [[m["role"] for m in request["messages"]] for request in engine.requests]
    assert roles == [
        ["user"],
        ["user", "assistant", "user"],
        ["system", "user", "assistant", "user", "assistant", "user"],
        ["system", "user"],
    ]
    assert "Traceback" not in terminal.seen


def test_ctrl_c_at_the_prompt_stays_and_end_of_input_leaves(gateway, address):
    terminal = Terminal("tiny", *address)
    terminal.wait_for("> ")
    terminal.type("\x03")
    terminal.wait_for("/exit leaves", times=2)
    terminal.type("\x04")
    assert terminal.end() == 0, terminal.seen


def test_a_refused_question_is_not_kept(gateway, engine: FakeEngine, address):
    terminal = Terminal("tiny", *address)
    terminal.wait_for("> ")
    terminal.type("die-first\n")
    terminal.wait_for("engine")
    terminal.type("hello\n")
    terminal.wait_for("first after")
    terminal.type("/exit\n")
    assert terminal.end() == 0
    assert engine.requests[-1]["messages"] == [{"role": "user", "content": "hello"}]


def test_answer_counts_tokens_after_the_first(monkeypatch):
    answer = Answer(started=0.0, first=1.0, last=3.0, usage={"completion_tokens": 5})
    assert (answer.ttft_s, answer.tokens_per_s) == (1.0, 2.0)
    assert answer.summary() == "5 tokens · 2.0 tokens/s · first after 1000 ms"
    assert Answer(started=0.0).summary() == ""


def test_system_prompt_comes_first():
    conversation = Conversation("s")
    conversation.say("user", "u")
    assert [turn["content"] for turn in conversation.messages()] == ["s", "u"]


def test_answers_that_are_no_json_still_make_an_error():
    assert error_of(502, b"<html>").message == "the gateway answered 502"
    assert isinstance(error_of(502, b"<html>"), errors.EngineError)
    assert isinstance(error_of(422, b"[]"), errors.InvalidRequest)
