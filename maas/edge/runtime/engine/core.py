"""The engine: a thread that computes, a queue in front of it.

Each turn of the thread takes what was asked since, lets requests in while there is room, computes
a part of one prompt and one step of all that decode, and pauses if its machine is to be spared. A
request that outgrows the memory for keys and values goes back to the queue with what it has so far,
the youngest first; nothing of its answer is lost or told twice.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence as Tokens
from pathlib import Path

import numpy as np
import psutil
from numpy.typing import NDArray

from maas.core.errors import (
    CapabilityMissing,
    EngineError,
    InvalidRequest,
    LimitExceeded,
    MaasError,
    NotFound,
)
from maas.edge.runtime.engine.adapters import Values, is_runtime_adapter, read_values
from maas.edge.runtime.engine.contract import EngineStats, ModelInfo, OnOutput, SamplingParams
from maas.edge.runtime.engine.grammars import GrammarCompiler
from maas.edge.runtime.engine.lanes import Lane
from maas.edge.runtime.engine.model import DecoderModel, SlotCache
from maas.edge.runtime.engine.options import EngineOptions, kv_bound_bytes
from maas.edge.runtime.engine.pace import pause_s
from maas.edge.runtime.engine.pages import rounded_up
from maas.edge.runtime.engine.prefixes import PrefixCache
from maas.edge.runtime.engine.sampling import Chooser
from maas.edge.runtime.engine.sequences import Sequence

log = logging.getLogger(__name__)

_BASE = ""
# Weights as they are in the file, and as onnxruntime packs them for its products.
_MEMORY_FACTOR = 2
# What waits now is not over much sooner.
_RETRY_AFTER_S = 5


class OnnxEngine:
    """Generates text with a bundle of a decoder.

    Args:
        folder: The unpacked bundle.
        options: Sizes and habits.
    """

    def __init__(self, folder: Path, options: EngineOptions) -> None:
        self._options = options
        self._model = DecoderModel(folder, options)
        config = self._model.config
        max_model_len = min(options.max_model_len or config.context_length, config.context_length)
        self._max_tokens = _max_tokens(self._model, options)
        # One request alone always has room.
        max_model_len = min(max_model_len, self._max_tokens)
        self.info = ModelInfo(
            max_model_len,
            config.vocab_size,
            config.eos_token_ids,
            kv_bytes_per_token=self._model.kv_bytes_per_token,
        )
        self._grammars = GrammarCompiler(
            folder / "tokenizer.json", config.vocab_size, min(config.eos_token_ids)
        )
        self._prefixes = PrefixCache(options.prefix_cache_bytes)
        self._lanes = {_BASE: self._lane(_BASE, self._model)}
        self._waiting: deque[Sequence] = deque()
        self._cancelled: set[int] = set()
        self._leaving: set[str] = set()
        self._num_tokens_total = 0
        self._next_id = 0
        self._is_closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def compile_grammar(self, text: str) -> None:
        """Get a grammar ready, so that what is submitted with it next is queued at once.

        Raises:
            InvalidRequest: It is none, or too large.
        """
        self._grammars.compile(text)

    def knows_grammar(self, text: str) -> bool:
        """Say, at once, whether a grammar is ready."""
        return self._grammars.knows(text)

    def submit(
        self,
        prompt: Tokens[int],
        params: SamplingParams,
        on_output: OnOutput,
        *,
        adapter: str | None = None,
        cache_salt: str = "",
    ) -> int:
        """Queue a request; returns its id at once.

        Raises:
            InvalidRequest: The prompt is empty or too long, a token is none of the vocabulary, or
                the grammar is none.
            LimitExceeded: Too many requests wait.
            NotFound: No adapter has this name.
        """
        self._check(prompt, params)
        grammar = None if params.grammar is None else self._grammars.compile(params.grammar)
        with self._changed:
            name = adapter or _BASE
            if name not in self._lanes or name in self._leaving:
                raise NotFound(f"no adapter {adapter!r} is loaded")
            if self._is_closed:
                raise EngineError("the engine is closed")
            if len(self._waiting) >= self._options.max_num_waiting:
                raise LimitExceeded(
                    f"{len(self._waiting)} requests wait for the engine: no more are taken",
                    retry_after_s=_RETRY_AFTER_S,
                )
            self._next_id += 1
            sequence = Sequence(
                self._next_id,
                prompt,
                params,
                on_output=on_output,
                chooser=Chooser(params, prompt, grammar),
                adapter=name,
                cache_salt=cache_salt,
                max_draft_tokens=self._options.max_draft_tokens,
            )
            self._waiting.append(sequence)
            self._changed.notify()
            return sequence.request_id

    def cancel(self, request_id: int) -> None:
        """End a request with reason ``cancelled``; fine if it is over."""
        with self._changed:
            self._cancelled.add(request_id)
            self._changed.notify()

    def embed(self, prompts: Tokens[Tokens[int]]) -> NDArray[np.float32]:  # noqa: ARG002 - the contract's
        """Refuse.

        Raises:
            CapabilityMissing: Always: the model generates text.
        """
        raise CapabilityMissing("this model generates text; it has no embeddings")

    def load_adapter(self, name: str, folder: Path) -> None:
        """Make an adapter answer under a name; doing so twice is fine.

        Args:
            name: Not empty.
            folder: Holds ``adapter.onnx_adapter`` for a graph that has inputs for it, or a
                whole graph: the base with the adapter merged into its weights.

        Raises:
            EngineError: It does not fit this model.
        """
        with self._changed:
            if name in self._lanes and name not in self._leaving:
                return
        try:
            lane = self._adapter_lane(name, folder)
        except MaasError as error:
            raise EngineError(f"adapter {name!r}: {error.message}") from error
        with self._changed:
            self._leaving.discard(name)
            self._lanes.setdefault(name, lane)

    def unload_adapter(self, name: str) -> None:
        """Forget an adapter when its requests are over; doing so twice is fine."""
        with self._changed:
            if name in self._lanes and name != _BASE:
                self._leaving.add(name)
                self._changed.notify()

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names of the adapters that answer."""
        with self._changed:
            return tuple(n for n in self._lanes if n != _BASE and n not in self._leaving)

    @property
    def stats(self) -> EngineStats:
        """How busy it is now."""
        # Outside the lock, which the engine's thread needs: a first reading may take a moment.
        pace = self._options.pace()
        with self._changed:
            return EngineStats(
                num_running=sum(len(lane.sequences) for lane in self._lanes.values()),
                num_waiting=len(self._waiting),
                num_tokens_total=self._num_tokens_total,
                kv_cache_usage=self._num_held() / self._max_tokens,
                pace=pace,
            )

    def rehearse(self) -> None:
        """Compute the largest steps there are, of the model and each adapter, on nothing.

        Only before anything is submitted. Memory is what it is at most then, keys and values aside.
        """
        for lane in self._lanes.values():
            lane.rehearse()

    def close(self) -> None:
        """End all requests with ``cancelled`` and stop."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _check(self, prompt: Tokens[int], params: SamplingParams) -> None:
        """Refuse what would fail once it runs, beside others."""
        if not prompt:
            raise InvalidRequest("the prompt is empty", param="prompt")
        if len(prompt) >= self.info.max_model_len:
            raise InvalidRequest(
                f"the prompt has {len(prompt)} tokens; the model takes "
                f"{self.info.max_model_len} with the answer",
                param="prompt",
            )
        for name, token_ids in (("prompt", prompt), ("logit_bias", params.logit_bias)):
            if not self.info.has_tokens(token_ids):
                raise InvalidRequest(
                    f"{name}: token ids are below {self.info.vocab_size}", param=name
                )

    def _lane(self, name: str, model: DecoderModel, adapter: Values | None = None) -> Lane:
        num_slots = max(1, self._options.max_num_seqs)
        cache = SlotCache(model, num_slots, self.info.max_model_len, adapter)
        return Lane(name, cache, self._prefixes)

    def _adapter_lane(self, name: str, folder: Path) -> Lane:
        if is_runtime_adapter(folder):
            return self._lane(name, self._model, read_values(folder, self._model.session))
        _check_memory(folder)
        return self._lane(name, DecoderModel(folder, self._options))

    def _run(self) -> None:
        while self._wait():
            started = time.perf_counter()
            try:
                self._turn()
            except Exception as error:
                log.exception("a step failed")
                self._fail(f"the engine failed: {error}")
            self._pause(time.perf_counter() - started)
        with self._changed:
            ended = [*self._waiting, *(s for lane in self._lanes.values() for s in lane.sequences)]
            self._waiting.clear()
        for sequence in ended:
            sequence.end("cancelled")

    def _wait(self) -> bool:
        """Wait for work, and let in what has room; false when the engine closes."""
        with self._changed:
            while not (self._is_closed or self._has_work()):
                self._changed.wait()
            if self._is_closed:
                return False
            self._drop_cancelled()
            self._drop_adapters()
            self._admit()
            return True

    def _pause(self, step_s: float) -> None:
        """Let the machine cool after a step; closing ends it, new requests do not."""
        share = self._options.pace().share
        if share < 1.0:
            with self._changed:
                self._changed.wait_for(lambda: self._is_closed, pause_s(step_s, share))

    def _has_work(self) -> bool:
        busy = any(lane.sequences for lane in self._lanes.values())
        return busy or bool(self._waiting or self._cancelled or self._leaving)

    def _turn(self) -> None:
        """Compute a part of each lane's newest prompt, and a step of all that decode."""
        lanes = [lane for lane in self._lanes.values() if lane.sequences]
        num_decoding = sum(len(lane.decoding) for lane in lanes)
        num_tokens = 0
        for lane in lanes:
            if lane.prefilling is not None:
                num_tokens += lane.prefill(is_shared=num_decoding > 0)
            self._end(lane)
            if lane.decoding:
                num_tokens += lane.decode(may_draft=num_decoding == 1)
            self._end(lane)
        with self._changed:
            self._num_tokens_total += num_tokens
            self._make_room()

    def _end(self, lane: Lane) -> None:
        lane.remove(s for s in lane.sequences if s.finish_reason is not None)

    def _admit(self) -> None:
        """Let requests in, the oldest first, while there are slots and memory for their prompts."""
        num_running = sum(len(lane.sequences) for lane in self._lanes.values())
        while self._waiting and num_running < self._options.max_num_seqs:
            sequence = self._waiting[0]
            lane = self._lanes[sequence.adapter or _BASE]
            # A lane computes one prompt at a time, and the others wait for their turn.
            if lane.prefilling is not None:
                return
            if num_running and self._num_held() + self._held_by(sequence) > self._max_tokens:
                return
            lane.add(self._waiting.popleft())
            num_running += 1

    def _make_room(self) -> None:
        """Send the youngest back to the queue while the rest outgrows the memory."""
        while self._num_held() > self._max_tokens:
            running = [(s, lane) for lane in self._lanes.values() for s in lane.sequences]
            if len(running) == 1:
                return
            youngest, lane = max(running, key=lambda pair: pair[0].request_id)
            lane.remove((youngest,))
            youngest.num_computed = 0
            self._waiting.appendleft(youngest)

    def _num_held(self) -> int:
        sequences = (s for lane in self._lanes.values() for s in lane.sequences)
        return sum(self._held_by(sequence) for sequence in sequences)

    def _held_by(self, sequence: Sequence) -> int:
        """Return the positions whose memory a sequence takes: guesses are computed behind it."""
        length = len(sequence.tokens) + self._options.max_draft_tokens
        return rounded_up(min(length, self.info.max_model_len), self._model.kv_block)

    def _drop_cancelled(self) -> None:
        if not self._cancelled:
            return
        wanted, self._cancelled = self._cancelled, set[int]()
        for sequence in [s for s in self._waiting if s.request_id in wanted]:
            self._waiting.remove(sequence)
            sequence.end("cancelled")
        for lane in self._lanes.values():
            for sequence in lane.sequences:
                if sequence.request_id in wanted:
                    sequence.end("cancelled")
            self._end(lane)

    def _drop_adapters(self) -> None:
        for name in list(self._leaving):
            is_wanted = any(s.adapter == name for s in self._waiting)
            if not is_wanted and not self._lanes[name].sequences:
                del self._lanes[name]
                self._leaving.discard(name)
                self._prefixes.forget(f"{name}\0")

    def _fail(self, message: str) -> None:
        """End all that runs: what a failed run left in the caches is not to be gone on with."""
        with self._changed:
            for lane in self._lanes.values():
                for sequence in lane.sequences:
                    sequence.end("error", message)
                lane.clear()


def _check_memory(folder: Path) -> None:
    """Refuse a second model that the machine has no memory for.

    Raises:
        EngineError: The message has the numbers.
    """
    size = sum(path.stat().st_size for path in folder.glob("*.onnx.data"))
    free = psutil.virtual_memory().available
    if _MEMORY_FACTOR * size > free:
        raise EngineError(
            f"it needs {_MEMORY_FACTOR * size / 1e9:.1f} GB of memory and {free / 1e9:.1f} are free"
        )


def _max_tokens(model: DecoderModel, options: EngineOptions) -> int:
    """Return the positions there is memory for, by whole pages."""
    block, size = model.kv_block, model.kv_bytes_per_token
    most = kv_bound_bytes(options, size, model.config.context_length)
    return max(most // size // block, 1) * block
