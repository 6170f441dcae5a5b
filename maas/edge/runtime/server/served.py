"""The bundle that answers, and how another takes its place under running requests."""

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from tokenizers import Tokenizer

from maas.core.errors import Unavailable
from maas.edge.runtime.engine.contract import Engine
from maas.edge.runtime.server.templates import ChatTemplate

log = logging.getLogger(__name__)

_RETRY_AFTER_S = 5


@dataclass(frozen=True)
class Served:
    """What a server answers with.

    Attributes:
        name: The model's name on the wire.
        engine: Computes.
        tokenizer: The model's.
        template: Of its chats.
        max_token_chars: No text has more characters for each of its tokens.
        reads_tools: Whether tool calls that the model writes of itself are understood.
        adapters: Names of the adapters that answer too.
    """

    name: str
    engine: Engine
    tokenizer: Tokenizer
    template: ChatTemplate
    max_token_chars: int = 256
    reads_tools: bool = False
    adapters: set[str] = field(default_factory=set[str])


class Lent:
    """A bundle and the requests that use it."""

    def __init__(self, served: Served | None) -> None:
        self.served = served
        self.num_users = 0
        self.is_free = asyncio.Event()
        self.is_free.set()

    async def retire(self, max_wait_s: float) -> None:
        """Close the bundle when its requests are over; those that run longer are ended."""
        try:
            async with asyncio.timeout(max_wait_s):
                await self.is_free.wait()
        except TimeoutError:
            log.warning("requests of the bundle before are ended after %.0f s", max_wait_s)
        finally:
            served, self.served = self.served, None
            if served is not None:
                await asyncio.to_thread(served.engine.close)


class Serving:
    """Lends the bundle to requests. Used in the event loop's thread only.

    Args:
        served: The bundle; none: there is none yet.
    """

    def __init__(self, served: Served | None = None) -> None:
        self._lent = Lent(served)
        self._why = "no bundle is loaded here yet"

    @property
    def current(self) -> Served | None:
        """The bundle that answers now."""
        return self._lent.served

    @contextmanager
    def use(self) -> Iterator[Served]:
        """Lend the bundle to a request: it is not closed before the request is over.

        Raises:
            Unavailable: There is none; the message says why.
        """
        lent = self._lent
        if lent.served is None:
            raise Unavailable(self._why, retry_after_s=_RETRY_AFTER_S)
        lent.num_users += 1
        lent.is_free.clear()
        try:
            yield lent.served
        finally:
            lent.num_users -= 1
            if not lent.num_users:
                lent.is_free.set()

    def exchange(self, served: Served | None, why: str = "") -> Lent:
        """Answer with another bundle from now on; return the old one, to be retired.

        Args:
            served: The other; none: requests are refused from now on.
            why: What they are told then.
        """
        old, self._lent = self._lent, Lent(served)
        self._why = why
        return old
