"""``maas chat``: a streamed conversation in the terminal, through the gateway like any client."""

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import aiohttp
import typer
from rich.console import Console

from maas.bootstrap import resolve_settings
from maas.cli.client import admin_key
from maas.cli.output import JsonFlag
from maas.core.errors import (
    AuthenticationFailed,
    ConfigError,
    EngineError,
    EngineUnreachable,
    InvalidRequest,
    MaasError,
    ModelNotFound,
    Unavailable,
)
from maas.protocol.sse import data_of

_HELP = "/exit leaves · /reset forgets the conversation · /system TEXT sets the system prompt"
_READ_BUFFER_BYTES = 2**20
_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=5.0, sock_read=300.0)
_ERRORS: Mapping[int, type[MaasError]] = {
    401: AuthenticationFailed,
    404: ModelNotFound,
    429: Unavailable,
    503: Unavailable,
}


@dataclass(frozen=True)
class Endpoint:
    """Where to ask, and as whom.

    Attributes:
        url: Of the gateway, without ``/v1``.
        sampling: Fields of the request beyond model and messages.
    """

    url: str
    key: str
    model: str
    sampling: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Conversation:
    """What was said so far."""

    system: str | None = None
    turns: list[dict[str, str]] = field(default_factory=list)

    def messages(self) -> list[dict[str, str]]:
        """Return the messages to send."""
        first = [] if self.system is None else [{"role": "system", "content": self.system}]
        return [*first, *self.turns]

    def say(self, role: str, text: str) -> None:
        """Add a turn."""
        self.turns.append({"role": role, "content": text})


@dataclass
class Answer:
    """An answer as it arrives; times are ``time.perf_counter``."""

    started: float
    text: str = ""
    first: float | None = None
    last: float | None = None
    usage: dict[str, Any] | None = None
    finish_reason: str | None = None

    def add(self, chunk: Mapping[str, Any]) -> str:
        """Take in one chunk of the stream; return the text it adds."""
        self.usage = chunk.get("usage") or self.usage
        choices = chunk.get("choices") or [{}]
        self.finish_reason = choices[0].get("finish_reason") or self.finish_reason
        added = (choices[0].get("delta") or {}).get("content") or ""
        if added:
            self.last = time.perf_counter()
            self.first = self.first or self.last
            self.text += added
        return added

    @property
    def ttft_s(self) -> float | None:
        """Seconds to the first token."""
        return None if self.first is None else self.first - self.started

    @property
    def tokens_per_s(self) -> float | None:
        """Tokens after the first one, per second; none where there are too few to say."""
        num_tokens = (self.usage or {}).get("completion_tokens", 0)
        if self.first is None or self.last is None or self.last <= self.first or num_tokens < 2:
            return None
        return (num_tokens - 1) / (self.last - self.first)

    def summary(self) -> str:
        """Return its numbers in one line."""
        parts: list[str] = []
        if self.usage is not None:
            parts.append(f"{self.usage['completion_tokens']} tokens")
        if self.tokens_per_s is not None:
            parts.append(f"{self.tokens_per_s:.1f} tokens/s")
        if self.ttft_s is not None:
            parts.append(f"first after {self.ttft_s * 1000:.0f} ms")
        if self.finish_reason == "length":
            parts.append("cut at its longest")
        return " · ".join(parts)


def error_of(status: int, body: bytes) -> MaasError:
    """Return the error that an answer of the gateway tells of."""
    try:
        message = json.loads(body)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = f"the gateway answered {status}"
    kind = _ERRORS.get(status, InvalidRequest if status < 500 else EngineError)
    return kind(str(message))


async def _events(response: aiohttp.ClientResponse) -> AsyncIterator[dict[str, Any]]:
    """Yield the chunks of a stream.

    Raises:
        EngineError: The stream says that the engine failed.
        EngineUnreachable: It ended without its end mark.
    """
    async for line in response.content:
        data = data_of(line)
        if data is None:
            continue
        if data == b"[DONE]":
            return
        event = json.loads(data)
        if "error" in event:
            raise EngineError(str(event["error"].get("message", event["error"])))
        yield event
    raise EngineUnreachable("the answer stopped half way")


async def ask(
    endpoint: Endpoint, conversation: Conversation, answer: Answer, write: Callable[[str], object]
) -> None:
    """Ask for the next answer and write it as it arrives.

    Cancelling closes the connection, on which the gateway aborts the engine.

    Args:
        endpoint: Where to ask.
        conversation: What was said; its last turn is the question.
        answer: Filled as the answer arrives.
        write: Called with each piece of text.

    Raises:
        MaasError: The gateway cannot be reached, refused, or the engine failed.
    """
    body = {
        "model": endpoint.model,
        "messages": conversation.messages(),
        "stream": True,
        "stream_options": {"include_usage": True},
        **endpoint.sampling,
    }
    headers = {"Authorization": f"Bearer {endpoint.key}"}
    url = f"{endpoint.url}/v1/chat/completions"
    try:
        async with (
            aiohttp.ClientSession(timeout=_TIMEOUT, read_bufsize=_READ_BUFFER_BYTES) as client,
            client.post(url, json=body, headers=headers) as response,
        ):
            if response.status != 200:
                raise error_of(response.status, await response.read())
            async for chunk in _events(response):
                if added := answer.add(chunk):
                    write(added)
    except aiohttp.InvalidURL as error:
        raise ConfigError(f"{endpoint.url!r} is no URL") from error
    except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
        raise Unavailable(
            f"no platform answers at {endpoint.url}; start it with: make up"
        ) from error
    except (aiohttp.ClientError, TimeoutError) as error:
        raise EngineUnreachable(f"the answer stopped half way: {error or 'too slow'}") from error


class _Terminal:
    """A conversation with a person."""

    def __init__(self, endpoint: Endpoint, system: str | None, console: Console) -> None:
        self._endpoint = endpoint
        self._conversation = Conversation(system)
        self._console = console

    def run(self) -> None:
        """Ask and answer until the person leaves."""
        self._console.print(f"[bold]{self._endpoint.model}[/]  [dim]{_HELP}[/]", highlight=False)
        with asyncio.Runner() as runner:
            while (line := self._read()) is not None:
                if line.startswith("/"):
                    self._command(line)
                elif line:
                    self._turn(runner, line)

    def _read(self) -> str | None:
        """Return the next line; none when the person leaves."""
        try:
            line = input("> ").strip()
        except EOFError:
            self._console.print()
            return None
        except KeyboardInterrupt:
            self._console.print("\n/exit leaves", style="dim")
            return ""
        return None if line in {"/exit", "/quit"} else line

    def _command(self, line: str) -> None:
        name, _, rest = line.partition(" ")
        if name == "/reset":
            self._conversation.turns.clear()
            self._console.print("the conversation starts anew", style="dim")
        elif name == "/system":
            self._conversation.system = rest.strip() or None
            self._console.print("set" if rest.strip() else "no system prompt", style="dim")
        else:
            self._console.print(_HELP, style="dim", highlight=False)

    def _turn(self, runner: asyncio.Runner, question: str) -> None:
        self._conversation.say("user", question)
        answer = Answer(time.perf_counter())
        try:
            runner.run(ask(self._endpoint, self._conversation, answer, _write))
        except KeyboardInterrupt:
            self._console.print("\nstopped", style="dim")
        except MaasError as error:
            if not answer.text:
                # As if it had not been asked, so that the next question is not asked twice.
                self._conversation.turns.pop()
            self._console.print(f"\n{error.message}", style="red", markup=False, soft_wrap=True)
        else:
            self._console.print(f"\n{answer.summary()}", style="dim", highlight=False)
        if answer.text:
            self._conversation.say("assistant", answer.text)


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _ask_once(endpoint: Endpoint, conversation: Conversation, *, as_json: bool) -> None:
    answer = Answer(time.perf_counter())
    asyncio.run(ask(endpoint, conversation, answer, (lambda _: None) if as_json else _write))
    if not as_json:
        _write("\n")
        return
    result = {
        "model": endpoint.model,
        "answer": answer.text,
        "finish_reason": answer.finish_reason,
        "usage": answer.usage,
        "ttft_s": answer.ttft_s,
        "tokens_per_s": answer.tokens_per_s,
    }
    _write(json.dumps(result, indent=2) + "\n")


def chat(  # noqa: PLR0913 - one option for each thing a person may set
    model: Annotated[str, typer.Argument(help="Model id, as in: maas model list.")],
    once: Annotated[str | None, typer.Option(help="Ask this one question, for scripts.")] = None,
    system: Annotated[str | None, typer.Option(help="System prompt.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Longest answer.")] = None,
    temperature: Annotated[float | None, typer.Option(min=0.0, max=2.0)] = None,
    url: Annotated[str | None, typer.Option(help="Gateway; default: the one here.")] = None,
    key: Annotated[str | None, typer.Option(help="API key; default: the admin key here.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Talk to a model. Ctrl-C stops an answer, /exit leaves."""
    if as_json and once is None:
        raise ConfigError("--json needs --once QUESTION")
    settings = resolve_settings()
    sampling = {"max_tokens": max_tokens, "temperature": temperature}
    endpoint = Endpoint(
        url=(url or settings.gateway_url).rstrip("/").removesuffix("/v1"),
        key=key or admin_key(settings),
        model=model,
        sampling={name: value for name, value in sampling.items() if value is not None},
    )
    if once is None:
        _Terminal(endpoint, system, Console()).run()
        return
    conversation = Conversation(system)
    conversation.say("user", once)
    _ask_once(endpoint, conversation, as_json=as_json)
