"""Rendering, encoding, compiling beside the event loop: they take seconds of what is long.

Whoever asks for little does not wait for those who ask for much: there are threads for each.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from aiohttp import web
from tokenizers import Tokenizer

from maas.core.errors import InvalidRequest, LimitExceeded, MalformedBody, PromptTooLong
from maas.edge.runtime.engine.contract import Engine
from maas.edge.runtime.server.requests import Encode
from maas.edge.runtime.server.served import Served

T = TypeVar("T")
_SHORT_BYTES = 64 << 10
_NUM_SHORT, _NUM_LONG, _NUM_GRAMMARS = 4, 1, 2
# Compiling ends by bounds of its own, on a machine of any speed some time.
_MAX_COMPILE_S = 10.0
_RETRY_AFTER_S = 5
# No bound may refuse what fits: normalizers drop characters, and small vocabularies have an
# unknown token for whole words.
_MIN_TOKEN_CHARS = 64


class Readers:
    """Threads that turn bodies into what the engine is asked."""

    def __init__(self) -> None:
        self._short = ThreadPoolExecutor(_NUM_SHORT, "read")
        self._long = ThreadPoolExecutor(_NUM_LONG, "read-long")
        self._grammars = ThreadPoolExecutor(_NUM_GRAMMARS, "grammar")

    async def read(self, body: bytes, ask: Callable[..., T], *args: Any) -> T:
        """Return what a function returns of a decoded body.

        Args:
            body: As it came: its length decides who it waits for.
            ask: The function.
            args: Its arguments.

        Raises:
            MalformedBody: It is nested too deep.
        """
        pool = self._short if len(body) <= _SHORT_BYTES else self._long
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(pool, partial(ask, *args))
        except RecursionError as error:
            raise MalformedBody("the body is nested too deep") from error

    async def compile(self, engine: Engine, grammar: str) -> None:
        """Have an engine get a grammar ready.

        Raises:
            InvalidRequest: It is none, or too large, or takes too long.
            LimitExceeded: Those of others take so long that it is not even begun.
        """
        if engine.knows_grammar(grammar):
            return
        loop, begun = asyncio.get_running_loop(), asyncio.Event()

        def compile_it() -> None:
            loop.call_soon_threadsafe(begun.set)
            engine.compile_grammar(grammar)

        compiled = self._grammars.submit(compile_it)
        try:
            await _wait_begun(begun, compiled)
            async with asyncio.timeout(_MAX_COMPILE_S):
                await asyncio.wrap_future(compiled)
        except TimeoutError as error:
            raise InvalidRequest(
                f"the grammar is refused: it was not compiled within {_MAX_COMPILE_S:.0f} s",
                param="response_format",
            ) from error
        finally:
            # Who went away needs it no more.
            compiled.cancel()

    async def close(self, _: web.Application) -> None:
        """Take no more."""
        for pool in (self._short, self._long, self._grammars):
            pool.shutdown(wait=False, cancel_futures=True)


async def _wait_begun(begun: asyncio.Event, compiled: Future[None]) -> None:
    try:
        async with asyncio.timeout(_MAX_COMPILE_S):
            await begun.wait()
    except TimeoutError as error:
        # Unless it was begun at this moment.
        if compiled.cancel():
            raise LimitExceeded(
                "grammars of others are being compiled", retry_after_s=_RETRY_AFTER_S
            ) from error


def encoder_of(served: Served, param: str) -> Encode:
    """Return what turns text into tokens.

    Args:
        served: Whose.
        param: The field that the text comes from, as refusals name it.
    """
    max_model_len = served.engine.info.max_model_len

    def encode(text: str, add_special_tokens: bool) -> list[int]:
        if len(text) > max_model_len * served.max_token_chars:
            raise PromptTooLong(
                f"the model has room for {max_model_len} tokens; {len(text)} characters are more",
                param=param,
            )
        # For one text alone it would hold Python's lock all the while.
        (encoding,) = served.tokenizer.encode_batch_fast(
            [text], add_special_tokens=add_special_tokens
        )
        return encoding.ids

    return encode


def most_chars(tokenizer: Tokenizer) -> int:
    """Return a bound of the characters a token stands for, on the average of a text."""
    return max(_MIN_TOKEN_CHARS, *map(len, tokenizer.get_vocab()))
