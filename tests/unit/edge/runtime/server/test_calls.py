"""Calls that a model writes of itself: text beside them is shown at once, and none is lost."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai
import pytest
from tokenizers import Tokenizer

from maas.edge.runtime.engine.contract import FinishReason, OnOutput, Output, SamplingParams
from maas.edge.runtime.engine.options import EngineOptions
from maas.edge.runtime.server.app import EdgeServer
from maas.edge.runtime.server.calls import PARSERS, CallReader
from maas.edge.runtime.server.serve import Address, listening, open_served
from maas.edge.runtime.server.served import Served, Serving
from maas.edge.runtime.server.templates import load_template
from maas.edge.runtime.server.tools import ToolPlan, read_calls
from maas.engines.onnx import PARSERS as PARSERS_OF_THE_PLATFORM
from tests.fakes.edge_engine import FakeEdgeEngine
from tests.unit.edge.conftest import write_tiny_tokenizer

CALL = '<tool_call>\n{"name": "f", "arguments": {"n": 1}}\n</tool_call>'
OTHER = '<tool_call>{"name": "g"}</tool_call>'
IN_TEXT = '<tool_call>{"name": "f", "arguments": {"n": "a</tool_call>b"}}</tool_call>'
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
USER = [{"role": "user", "content": "hello"}]
F, G = ("f", {"n": 1}), ("g", {})


def told(pieces: Sequence[str | dict[str, Any]]) -> tuple[str, list[tuple[str, Any]]]:
    """Return the text and the calls of some pieces."""
    functions = [piece["function"] for piece in pieces if not isinstance(piece, str)]
    text = "".join(piece for piece in pieces if isinstance(piece, str))
    return text, [(call["name"], json.loads(call["arguments"])) for call in functions]


CASES = [
    ("plain text, with a < b", "plain text, with a < b", []),
    (f"I look it up. {CALL}", "I look it up.", [F]),
    (f"{CALL}\n{OTHER}", "", [F, G]),
    (f"one {CALL} two {OTHER} three", "one  two  three", [F, G]),
    (IN_TEXT, "", [("f", {"n": "a</tool_call>b"})]),
    # The model ends without the tag, or within it.
    (CALL.removesuffix("</tool_call>"), "", [F]),
    (CALL.removesuffix("call>"), "", [F]),
    # What looks like a call and is none.
    ("the tag <tool_call> begins one", "the tag <tool_call> begins one", []),
    ("a <tool, a <tool_caller>, a", "a <tool, a <tool_caller>, a", []),
    ("cut <tool_ca", "cut <tool_ca", []),
    ("cut \n<tool_call>", "cut \n<tool_call>", []),
    ('cut <tool_call>{"name": "f", "argu', 'cut <tool_call>{"name": "f", "argu', []),
    (f"<tool_call>{{3}}</tool_call> {OTHER}", "<tool_call>{3}</tool_call>", [G]),
    ("<tool_call>{}</tool_call>", "<tool_call>{}</tool_call>", []),
    ("ends in space \n", "ends in space \n", []),
    (f"{CALL}\n", "", [F]),
    (f"\n{'<' * 30}{CALL}", f"\n{'<' * 30}", [F]),
]


@pytest.mark.parametrize(("text", "shown", "calls"), CASES)
def test_an_answer_in_any_pieces_is_the_whole_one(text, shown, calls):
    for size in range(1, len(text) + 1):
        reader = CallReader()
        pieces: list[str | dict[str, Any]] = []
        for start in range(0, len(text), size):
            pieces += reader.push(text[start : start + size])
        assert told([*pieces, *reader.finish()]) == (shown, calls), size
        assert reader.num_calls == len(calls)
    content, whole = read_calls(text, ToolPlan("auto"))
    assert told([content or "", *whole]) == (shown, calls)


def test_only_what_may_begin_a_call_is_held_back():
    reader = CallReader()
    assert reader.push("a b") == ["a b"]
    assert reader.push(" <") == []
    assert reader.push("3") == [" <3"]
    assert reader.push("<tool_call>") == []
    assert "".join(map(str, reader.push(" no"))) == "<tool_call> no"


@dataclass
class ScriptedEngine(FakeEdgeEngine):
    """Writes a text, a token a byte; ``gates`` are waited for before some of them."""

    text: str = ""
    reason: FinishReason = "stop"
    tokenizer: Tokenizer | None = None
    gates: dict[int, asyncio.Event] = field(default_factory=dict)
    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def submit(self, prompt, params: SamplingParams, on_output: OnOutput, **_: Any) -> int:
        task = asyncio.get_running_loop().create_task(self._write(on_output))
        self.tasks.add(task)
        return super().num_asked

    async def _write(self, on_output: OnOutput) -> None:
        assert self.tokenizer is not None
        for place, token in enumerate(self.tokenizer.encode(self.text).ids):
            if place in self.gates:
                await self.gates[place].wait()
            on_output(Output((token,)))
        on_output(Output((), finish_reason=self.reason))


Serve = Callable[..., Any]


@pytest.fixture
def serve(tmp_path: Path) -> Serve:
    """Serve an engine that writes some text; yields OpenAI's client."""
    write_tiny_tokenizer(tmp_path)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))

    @asynccontextmanager
    async def serving(
        text: str, *, reads_tools: bool = True, **switches: Any
    ) -> AsyncIterator[openai.AsyncOpenAI]:
        engine = ScriptedEngine(text=text, tokenizer=tokenizer, **switches)
        served = Served("tiny", engine, tokenizer, load_template(tmp_path), reads_tools=reads_tools)
        app = EdgeServer(Serving(served)).make_app()
        async with listening(app, Address("127.0.0.1", 0)) as port:
            url = f"http://127.0.0.1:{port}/v1"
            async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
                yield client

    return serving


def ask(client: openai.AsyncOpenAI, **more: Any) -> Any:
    asked = {"model": "tiny", "messages": USER, "tools": [TOOL], "max_tokens": 40}
    return client.chat.completions.create(**(asked | more))


@dataclass
class Streamed:
    """What came of a stream."""

    content: str = ""
    calls: list[Any] = field(default_factory=list)
    reason: str | None = None
    usage: Any = None


async def read(stream: Any) -> Streamed:
    got = Streamed()
    async for chunk in stream:
        got.usage = chunk.usage or got.usage
        for choice in chunk.choices:
            got.content += choice.delta.content or ""
            got.calls += choice.delta.tool_calls or ()
            got.reason = choice.finish_reason or got.reason
    return got


async def test_text_is_streamed_at_once_and_calls_as_openai_streams_them(serve):
    gate = asyncio.Event()
    text = f"I look it up. {CALL}\n{OTHER}"
    async with serve(text, gates={8: gate}) as client:
        stream = await ask(client, stream=True, stream_options={"include_usage": True})
        shown = ""
        async for chunk in stream:
            shown += chunk.choices[0].delta.content or ""
            if shown == "I look i"[:8].rstrip():
                break
        # The model has not written the rest yet.
        gate.set()
        got = await read(stream)
    assert shown + got.content == "I look it up."
    assert [(call.index, call.type, call.function.name) for call in got.calls] == [
        (0, "function", "f"),
        (1, "function", "g"),
    ]
    assert [json.loads(call.function.arguments) for call in got.calls] == [{"n": 1}, {}]
    assert len({call.id for call in got.calls}) == 2
    assert got.reason == "tool_calls"
    assert got.usage.completion_tokens == len(text)


async def test_the_sdk_puts_a_streamed_call_together(serve):
    async with (
        serve(f"So: {CALL}") as client,
        client.chat.completions.stream(model="tiny", messages=USER, tools=[TOOL]) as stream,
    ):
        completion = await stream.get_final_completion()
    (choice,) = completion.choices
    assert (choice.message.content, choice.finish_reason) == ("So:", "tool_calls")
    assert choice.message.tool_calls[0].function.name == "f"
    assert json.loads(choice.message.tool_calls[0].function.arguments) == {"n": 1}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("it is a <tool, no call", "stop"),
        ("half <tool_c", "length"),
        ("half\n<tool_call>", "stop"),
        ('half <tool_call>{"name": "f"', "length"),
    ],
)
async def test_what_is_no_call_is_not_lost(serve, text, reason):
    async with serve(text, reason=reason) as client:
        got = await read(await ask(client, stream=True))
        whole = (await ask(client)).choices[0]
    assert (got.content, got.calls, got.reason) == (text, [], reason)
    assert (whole.message.content, whole.finish_reason) == (text, reason)


async def test_a_stop_string_ends_text_and_calls(serve):
    async with serve(f"one STOP {CALL}") as client:
        got = await read(await ask(client, stream=True, stop=["STOP"]))
        assert (got.content, got.calls, got.reason) == ("one ", [], "stop")
    async with serve(f"one {CALL} two STOP three") as client:
        got = await read(await ask(client, stream=True, stop=["STOP"]))
        assert (got.content, len(got.calls), got.reason) == ("one  two", 1, "tool_calls")


async def test_calls_that_nobody_reads_are_refused_by_name(serve):
    async with serve(f"one {CALL}", reads_tools=False) as client:
        for more in ({}, {"tool_choice": "auto"}, {"stream": True}):
            with pytest.raises(openai.BadRequestError, match="tools: nobody here") as caught:
                await ask(client, **more)
            assert (caught.value.code, caught.value.param) == ("capability_missing", "tools")
        answer = await ask(client, tool_choice="none")
    assert answer.choices[0].message.content == f"one {CALL}"


@pytest.mark.parametrize(
    ("parser", "reads_tools"),
    [(None, False), ("hermes", True), ("llama3_json", False), ("pythonic", False)],
)
def test_the_parser_that_a_bundle_names_decides(tiny, parser, reads_tools):
    options = EngineOptions(num_threads=1, enable_spinning=False)
    served = open_served(tiny, "tiny", options, tool_call_parser=parser)
    served.engine.close()
    assert served.reads_tools == reads_tools


def test_the_platform_starts_the_engine_for_the_same_parsers():
    assert PARSERS_OF_THE_PLATFORM == PARSERS
