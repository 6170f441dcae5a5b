"""``maas-edge run|serve|bench``: a bundle at work."""

import asyncio
import queue
import subprocess
import sys
from dataclasses import dataclass, replace
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from maas.core.errors import EngineError, MaasError, NotFound
from maas.edge.runtime.bundle.manifest import Adapter, Manifest
from maas.edge.runtime.cli.flags import (
    DEFAULTS,
    KV_CACHE_MB,
    PREFIX_CACHE_MB,
    AllowOrigin,
    Cool,
    Host,
    KvCacheMb,
    MaxModelLen,
    MaxNumSeqs,
    Pace,
    PaceMode,
    Port,
    PrefixCacheMb,
    ServedModelName,
    Threads,
    engine_options,
)
from maas.edge.runtime.cli.shared import JsonFlag, check_positive, emit, locate, warn
from maas.edge.runtime.engine.contract import Output, SamplingParams
from maas.edge.runtime.memory import check_memory
from maas.edge.runtime.server.guard import Guard, allowed_origins
from maas.edge.runtime.server.serve import Address, open_served, serve
from maas.edge.runtime.server.served import Served
from maas.edge.runtime.server.text import TextStream
from maas.edge.runtime.shelf.shelf import Held

_Source = Annotated[
    str | None, typer.Argument(help="Bundle file or unpacked folder; none: the one in use.")
]


@dataclass
class Conversation:
    """A chat with one bundle in this terminal."""

    served: Served
    params: SamplingParams
    messages: list[dict[str, Any]]
    adapter: str | None = None

    def ask(self, text: str) -> tuple[str, int]:
        """Print the answer as it comes; return it, and its number of tokens.

        Ctrl-C ends the answer, not the conversation.

        Raises:
            EngineError: The engine failed.
        """
        self.messages.append({"role": "user", "content": text})
        served = self.served
        if served.template.exists:
            prompt = served.tokenizer.encode(
                served.template.render(self.messages, None), add_special_tokens=False
            ).ids
        else:
            prompt = served.tokenizer.encode(text).ids
        outputs: queue.Queue[Output] = queue.Queue()
        room = served.engine.info.max_model_len - len(prompt)
        request_id = served.engine.submit(
            prompt, _within(self.params, room), outputs.put, adapter=self.adapter
        )
        stream = TextStream(served.tokenizer, ())
        answer, num_tokens = "", 0
        while True:
            try:
                output = outputs.get()
            except KeyboardInterrupt:
                served.engine.cancel(request_id)
                continue
            if output.finish_reason == "error":
                raise EngineError(output.error or "the engine failed")
            num_tokens += len(output.token_ids)
            text = stream.push(output.token_ids)
            if output.finish_reason is not None:
                text += stream.flush()
            answer += text
            sys.stdout.write(text)
            sys.stdout.flush()
            if output.finish_reason is not None:
                break
        self.messages.append({"role": "assistant", "content": answer})
        return answer, num_tokens


def run(  # noqa: PLR0913 - one a flag
    source: _Source = None,
    prompt: Annotated[str | None, typer.Option(help="Answer this and end; none: chat.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Of an answer.")] = 512,
    temperature: Annotated[float, typer.Option(min=0, max=2)] = 0.0,
    seed: Annotated[int | None, typer.Option(min=0)] = None,
    adapter: Annotated[str | None, typer.Option(help="Answer with this adapter.")] = None,
    threads: Threads = 0,
    cool: Cool = False,
    pace: Pace = PaceMode.AUTO,
    max_model_len: MaxModelLen = DEFAULTS.max_model_len,
    kv_cache_mb: KvCacheMb = KV_CACHE_MB,
    prefix_cache_mb: PrefixCacheMb = PREFIX_CACHE_MB,
    as_json: JsonFlag = False,
) -> None:
    """Chat with a bundle in the terminal, or answer one prompt."""
    held = locate(source)
    adapters = _chosen(held.manifest, adapter)
    options = engine_options(
        threads,
        cool=cool,
        pace=pace,
        # A terminal asks one thing at a time.
        max_num_seqs=1,
        max_model_len=max_model_len,
        kv_cache_bytes=kv_cache_mb << 20,
        prefix_cache_bytes=prefix_cache_mb << 20,
    )
    check_memory(held.manifest, options)
    served = open_served(held.folder, held.manifest.name, options, adapters)
    params = SamplingParams(max_tokens=max_tokens, temperature=temperature, seed=seed)
    conversation = Conversation(served, params, [], adapter)
    try:
        if prompt is None:
            _chat(conversation)
        elif as_json:
            _answer_as_json(conversation, held, prompt)
        else:
            conversation.ask(prompt)
            sys.stdout.write("\n")
    finally:
        served.engine.close()


def serve_bundle(  # noqa: PLR0913 - one a flag
    source: _Source = None,
    host: Host = "127.0.0.1",
    port: Port = 8081,
    served_model_name: ServedModelName = None,
    threads: Threads = 0,
    cool: Cool = False,
    pace: Pace = PaceMode.AUTO,
    max_num_seqs: MaxNumSeqs = DEFAULTS.max_num_seqs,
    max_model_len: MaxModelLen = DEFAULTS.max_model_len,
    kv_cache_mb: KvCacheMb = KV_CACHE_MB,
    prefix_cache_mb: PrefixCacheMb = PREFIX_CACHE_MB,
    allow_origin: AllowOrigin = None,
) -> None:
    """Serve OpenAI's API on this device until Ctrl-C."""
    guard = Guard(host, allowed_origins(allow_origin or ()))
    held = locate(source)
    options = engine_options(
        threads,
        cool=cool,
        pace=pace,
        max_num_seqs=max_num_seqs,
        max_model_len=max_model_len,
        kv_cache_bytes=kv_cache_mb << 20,
        prefix_cache_bytes=prefix_cache_mb << 20,
    )
    check_memory(held.manifest, options)
    name = served_model_name or held.manifest.model_id
    parser = held.manifest.tool_call_parser
    served = open_served(
        held.folder, name, options, held.manifest.adapters, tool_call_parser=parser
    )
    names = (name, *served.adapters)
    asyncio.run(
        serve(
            served,
            Address(host, port),
            lambda at: warn(f"{', '.join(names)} answers on http://{host}:{at}/v1"),
            guard=guard,
        )
    )


def bench(source: _Source = None, threads: Threads = 0, as_json: JsonFlag = False) -> None:
    """Measure load time, memory, speed and energy of a bundle here."""
    held = locate(source)
    check_positive(threads, flag="--threads")
    # A process of its own: memory is counted by process.
    command = [sys.executable, "-P", "-m", "maas.edge.runtime.bench", str(held.folder)]
    done = subprocess.run(  # noqa: S603 - our own module
        [*command, "--threads", str(threads)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise EngineError((done.stderr.strip().splitlines() or ["it said nothing"])[-1])
    card: dict[str, Any] = msgspec.json.decode(done.stdout)

    def render(console: Console) -> None:
        table = Table(show_header=False, box=None)
        for name, value in card.items():
            table.add_row(name, "" if value is None else str(value))
        console.print(table)

    emit({"bundle_id": held.manifest.bundle_id, **card}, as_json=as_json, render=render)


def _chosen(manifest: Manifest, name: str | None) -> tuple[Adapter, ...]:
    """Return the one adapter that is asked for, if any.

    Raises:
        NotFound: The bundle has none of this name.
    """
    if name is None:
        return ()
    found = tuple(adapter for adapter in manifest.adapters if adapter.name == name)
    if not found:
        known = ", ".join(adapter.name for adapter in manifest.adapters) or "none"
        raise NotFound(f"--adapter {name}: {manifest.name} has {known}")
    return found


def _within(params: SamplingParams, room: int) -> SamplingParams:
    return replace(params, max_tokens=max(1, min(params.max_tokens, room)))


def _answer_as_json(conversation: Conversation, held: Held, prompt: str) -> None:
    out, sys.stdout = sys.stdout, sys.stderr
    try:
        answer, num_tokens = conversation.ask(prompt)
    finally:
        sys.stdout = out
    result = {
        "bundle_id": held.manifest.bundle_id,
        "answer": answer,
        "num_completion_tokens": num_tokens,
    }
    emit(result, as_json=True, render=lambda _: None)


def _chat(conversation: Conversation) -> None:
    """Talk until /quit or the end of input."""
    warn("/reset forgets, /quit ends, Ctrl-C stops an answer")
    while True:
        try:
            text = input("> ").strip()
        except (EOFError, KeyboardInterrupt):
            sys.stdout.write("\n")
            return
        if text == "/quit":
            return
        if text == "/reset":
            conversation.messages.clear()
        elif text:
            try:
                conversation.ask(text)
            except MaasError as error:
                # Too long a conversation, most often.
                conversation.messages.pop()
                warn(error.message)
            sys.stdout.write("\n")
