"""An engine of a device that answers at once, with switches for its faults."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from maas.core.errors import CapabilityMissing
from maas.edge.runtime.engine.contract import (
    EngineStats,
    ModelInfo,
    OnOutput,
    Output,
    SamplingParams,
)
from maas.edge.runtime.engine.pace import Pace


@dataclass
class FakeEdgeEngine:
    """Answers ``a`` so often as it may.

    ``fails``: ``first`` fails before a token, ``later`` after one, ``never`` not; ``holds`` keeps
    answers open until the engine is closed. ``pace`` is what it says of its machine.
    """

    fails: str = "never"
    holds: bool = False
    info: ModelInfo = field(default_factory=lambda: ModelInfo(64, 288, frozenset({257})))
    pace: Pace = field(default_factory=Pace)
    num_asked: int = 0
    is_closed: bool = False
    open: list[OnOutput] = field(default_factory=list)
    is_asked: asyncio.Event = field(default_factory=asyncio.Event)

    def compile_grammar(self, text: str) -> None:
        pass

    def knows_grammar(self, text: str) -> bool:
        return False

    def submit(
        self,
        prompt: Sequence[int],
        params: SamplingParams,
        on_output: OnOutput,
        *,
        adapter: str | None = None,
        cache_salt: str = "",
    ) -> int:
        self.num_asked += 1
        if self.fails == "first":
            on_output(Output((), finish_reason="error", error="no memory"))
            return self.num_asked
        on_output(Output((97,)))
        if self.fails == "later":
            on_output(Output((), finish_reason="error", error="no memory"))
        elif self.holds:
            self.open.append(on_output)
            self.is_asked.set()
        else:
            on_output(Output((97,) * (params.max_tokens - 1), finish_reason="length"))
        return self.num_asked

    def cancel(self, request_id: int) -> None:
        pass

    def embed(self, prompts):
        if self.info.task != "embed":
            raise CapabilityMissing("no embeddings")
        return np.ones((len(prompts), 4), np.float32) / 2

    def load_adapter(self, name, folder) -> None:
        pass

    def unload_adapter(self, name) -> None:
        pass

    def rehearse(self) -> None:
        pass

    @property
    def stats(self) -> EngineStats:
        return EngineStats(0, 0, 0, 0.0, self.pace)

    def close(self) -> None:
        self.is_closed = True
        for on_output in self.open:
            on_output(Output((), finish_reason="cancelled"))
