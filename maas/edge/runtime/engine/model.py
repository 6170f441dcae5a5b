"""A decoder as onnxruntime-genai's builder writes it, run on memory of our own.

Keys and values live in one buffer per layer, of shape (slots, KV heads, positions, head size).
Inputs and outputs of the graph are bound to the same part of it, so a step writes its new
positions in place and nothing is copied. A run takes slots that lie side by side.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from maas.core.errors import ConfigError
from maas.edge.runtime.bundle.manifest import GRAPH_SUFFIX
from maas.edge.runtime.engine.options import EngineOptions
from maas.edge.runtime.engine.pages import Slab, positions_of_pages, rounded_up, zeros_in_pages

_DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
# Logits of a chunk are written for each of its positions: more would be memory traffic only.
_MAX_LOGITS_BYTES = 32 << 20
MAX_CHUNK = 256
_MIN_CHUNK = 16
_MAX_KEPT_ROWS = 16
# The width of the mask is rounded up to this, so that a step seldom needs another binding.
_MASK_STEP = 256
# No decoder has more; each of these is memory, or a loop.
_MAX_VOCAB_SIZE, _MAX_LAYERS, _MAX_HEAD_SIZE = 1 << 24, 1 << 12, 1 << 16
_MAX_CONTEXT = 1 << 30


@dataclass(frozen=True)
class DecoderConfig:
    """What ``genai_config.json`` says of a decoder.

    Attributes:
        context_length: Positions it was trained for.
        file_name: Of the graph.
        past_key: Name of a layer's keys among the inputs, with ``%d`` for the layer.
    """

    context_length: int
    vocab_size: int
    eos_token_ids: frozenset[int]
    num_layers: int
    head_size: int
    file_name: str
    past_key: str
    past_value: str
    present_key: str
    present_value: str


def read_config(folder: Path) -> DecoderConfig:
    """Read a folder's ``genai_config.json``.

    Raises:
        ConfigError: It is missing or describes no decoder that there is.
    """
    path = folder / "genai_config.json"
    try:
        model = json.loads(path.read_text(encoding="utf-8"))["model"]
        decoder = model["decoder"]
        inputs, outputs = decoder["inputs"], decoder["outputs"]
        eos = model["eos_token_id"]
        return DecoderConfig(
            context_length=_within(model, "context_length", _MAX_CONTEXT),
            vocab_size=_within(model, "vocab_size", _MAX_VOCAB_SIZE),
            eos_token_ids=_token_ids(eos if isinstance(eos, list) else [eos]),
            num_layers=_within(decoder, "num_hidden_layers", _MAX_LAYERS),
            head_size=_within(decoder, "head_size", _MAX_HEAD_SIZE),
            file_name=_file_name(decoder["filename"]),
            past_key=_layer_name(inputs["past_key_names"]),
            past_value=_layer_name(inputs["past_value_names"]),
            present_key=_layer_name(outputs["present_key_names"]),
            present_value=_layer_name(outputs["present_value_names"]),
        )
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise ConfigError(f"{path}: not the configuration of a decoder: {error!r}") from error


def _within(fields: Mapping[str, Any], name: str, most: int) -> int:
    value = int(fields[name])
    if not 0 < value <= most:
        raise ValueError(f"{name} {value}: want 1 to {most}")
    return value


def _token_ids(values: list[Any]) -> frozenset[int]:
    if not values or not all(isinstance(value, int) and value >= 0 for value in values):
        raise ValueError("eos_token_id: want one token, or some")
    return frozenset(values)


def _file_name(value: Any) -> str:
    if not isinstance(value, str) or Path(value).name != value or not value.endswith(GRAPH_SUFFIX):
        raise ValueError(f"filename {str(value)[:80]!r}: want a graph of this folder")
    return value


def _layer_name(value: Any) -> str:
    if not isinstance(value, str) or value.count("%") != 1 or "%d" not in value:
        raise ValueError(f"{str(value)[:80]!r}: want a name with one %d, for the layer")
    return value


def open_session(path: Path, options: EngineOptions) -> ort.InferenceSession:
    """Open a graph.

    Raises:
        ConfigError: onnxruntime does not take it.
    """
    session = ort.SessionOptions()
    session.intra_op_num_threads = options.threads
    session.inter_op_num_threads = 1
    session.log_severity_level = 3
    spinning = "1" if options.enable_spinning else "0"
    session.add_session_config_entry("session.intra_op.allow_spinning", spinning)
    if options.may_pause:
        # They would spin on for some 35 ms after each run: through most pauses between steps.
        session.add_session_config_entry("session.force_spinning_stop", "1")
    try:
        return ort.InferenceSession(str(path), session, providers=["CPUExecutionProvider"])
    except Exception as error:
        # Its exceptions share no base but this one.
        raise ConfigError(f"{path}: onnxruntime does not load it: {error}") from error


class DecoderModel:
    """A decoder's graph. Several caches can run on one.

    Args:
        folder: The unpacked bundle.
        options: Threads.
    """

    def __init__(self, folder: Path, options: EngineOptions) -> None:
        self.config = read_config(folder)
        self.session = open_session(folder / self.config.file_name, options)
        inputs = {item.name: item for item in self.session.get_inputs()}
        first = inputs.get(self.config.past_key % 0)
        if first is None or first.type not in _DTYPES:
            raise ConfigError(f"{folder}: the graph has no keys and values to go on from")
        self.kv_dtype = _DTYPES[first.type]
        self.num_kv_heads = int(first.shape[1])
        logits = next(item for item in self.session.get_outputs() if item.name == "logits")
        self.logits_dtype = _DTYPES[logits.type]
        row_bytes = self.config.vocab_size * np.dtype(self.logits_dtype).itemsize
        self.max_chunk = max(_MIN_CHUNK, min(MAX_CHUNK, _MAX_LOGITS_BYTES // row_bytes))

    @property
    def kv_bytes_per_token(self) -> int:
        """Memory one position takes, in bytes."""
        size = np.dtype(self.kv_dtype).itemsize * self.num_kv_heads * self.config.head_size
        return 2 * self.config.num_layers * size

    @property
    def kv_block(self) -> int:
        """Positions that memory is taken for at once: those of a page, or a few."""
        return positions_of_pages(np.dtype(self.kv_dtype).itemsize * self.config.head_size)


@dataclass
class _Binding:
    """A run's memory, bound to the graph."""

    io: Any
    ids: NDArray[np.int64]
    mask: NDArray[np.int64]
    logits: NDArray[Any]


class SlotCache:
    """Keys and values of the sequences that run on a model, and the runs on them.

    Args:
        model: The graph.
        num_slots: Sequences at a time.
        num_positions: Of each.
        adapter: Values of the graph's inputs for adapters, by their names.
    """

    def __init__(
        self,
        model: DecoderModel,
        num_slots: int,
        num_positions: int,
        adapter: Mapping[str, Any] | None = None,
    ) -> None:
        self.model = model
        self.num_positions = num_positions
        self._adapter = adapter or {}
        self._num_slots = num_slots
        config = model.config
        num_rows = rounded_up(num_positions, model.kv_block)
        shape = (num_slots, model.num_kv_heads, num_rows, config.head_size)
        self._keys = [Slab(shape, model.kv_dtype) for _ in range(config.num_layers)]
        self._values = [Slab(shape, model.kv_dtype) for _ in range(config.num_layers)]
        num_rows = max(num_slots, model.max_chunk)
        self._logits = np.empty((num_rows, config.vocab_size), model.logits_dtype)
        self._bindings: dict[tuple[int, int, int, int], _Binding] = {}

    def extend(self, slot: int, tokens: NDArray[np.int64], num_before: int) -> NDArray[Any]:
        """Compute some tokens of one sequence.

        Args:
            slot: Where the sequence is.
            tokens: Shape (n,), at most ``model.max_chunk``.
            num_before: Positions of it that are there already.

        Returns:
            Logits after each, shape (n, vocabulary); valid until the next run.
        """
        total = num_before + len(tokens)
        # A first chunk is known by a mask as long as itself.
        width = total if not num_before else self._width(total)
        binding = self._binding(slot, 1, len(tokens), width)
        binding.ids[0] = tokens
        binding.mask[0, :total] = 1
        binding.mask[0, total:] = 0
        self._run(binding)
        return binding.logits[0]

    def step(self, tokens: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[Any]:
        """Compute one token of each of the first sequences.

        Args:
            tokens: Shape (n,): of the slots from 0 on.
            lengths: Positions each has already, shape (n,).

        Returns:
            Logits, shape (n, vocabulary); valid until the next run.
        """
        width = self._width(int(lengths.max()) + 1)
        binding = self._binding(0, len(tokens), 1, width)
        binding.ids[:, 0] = tokens
        np.less_equal(np.arange(width)[None], lengths[:, None], out=binding.mask, casting="unsafe")
        self._run(binding)
        return binding.logits[:, 0]

    def rehearse(self) -> None:
        """Compute the largest steps there are: what they take beside keys and values stays."""
        size = min(self.model.max_chunk, self.num_positions)
        self.extend(0, np.zeros(size, np.int64), self.num_positions - size)
        last = np.full(self._num_slots, self.num_positions - 1)
        self.step(np.zeros(self._num_slots, np.int64), last)
        self.empty_all()

    def move(self, source: int, target: int, length: int) -> None:
        """Bring a sequence's first positions to another slot; its own is empty then."""
        for slab in self._slabs:
            slab.array[target, :, :length] = slab.array[source, :, :length]
            # Layer by layer: at no time is all of it there twice.
            slab.give_back(source)
            slab.give_back(target, length)

    def empty(self, slot: int) -> None:
        """Give back the memory of a slot that no sequence is in."""
        for slab in self._slabs:
            slab.give_back(slot)

    def empty_all(self) -> None:
        """Give back the memory of all slots."""
        for slot in range(self._num_slots):
            self.empty(slot)

    def read(self, slot: int, length: int) -> NDArray[Any]:
        """Return a copy of a sequence's first positions: (2 layers, heads, length, size)."""
        slabs, model = self._slabs, self.model
        shape = (len(slabs), model.num_kv_heads, length, model.config.head_size)
        kept = zeros_in_pages(shape, model.kv_dtype)
        for part, slab in zip(kept, slabs, strict=True):
            part[:] = slab.array[slot, :, :length]
        return kept

    def write(self, slot: int, kept: NDArray[Any], length: int) -> None:
        """Put back the first positions of what ``read`` returned."""
        for slab, part in zip(self._slabs, kept, strict=True):
            slab.array[slot, :, :length] = part[:, :length]

    @property
    def _slabs(self) -> tuple[Slab, ...]:
        return (*self._keys, *self._values)

    def _run(self, binding: _Binding) -> None:
        self.model.session.run_with_iobinding(binding.io)

    def _width(self, total: int) -> int:
        return min(self.num_positions, -(-total // _MASK_STEP) * _MASK_STEP)

    def _binding(self, slot: int, count: int, length: int, width: int) -> _Binding:
        key = (slot, count, length, width)
        found = self._bindings.get(key)
        if found is not None:
            return found
        config, model = self.model.config, self.model
        made = _Binding(
            model.session.io_binding(),
            np.zeros((count, length), np.int64),
            np.zeros((count, width), np.int64),
            self._logits[: count * length].reshape(count, length, config.vocab_size),
        )
        _bind_input(made.io, "input_ids", made.ids)
        _bind_input(made.io, "attention_mask", made.mask)
        _bind_output(made.io, "logits", made.logits)
        for name, value in self._adapter.items():
            made.io.bind_ortvalue_input(name, value)
        for layer in range(config.num_layers):
            keys = self._keys[layer].array[slot : slot + count]
            values = self._values[layer].array[slot : slot + count]
            _bind_input(made.io, config.past_key % layer, keys)
            _bind_input(made.io, config.past_value % layer, values)
            _bind_output(made.io, config.present_key % layer, keys)
            _bind_output(made.io, config.present_value % layer, values)
        # Chunks of prompts come in all lengths, steps in few.
        if count * length <= _MAX_KEPT_ROWS:
            self._bindings[key] = made
        return made


def _bind_input(io: Any, name: str, array: NDArray[Any]) -> None:
    io.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)


def _bind_output(io: Any, name: str, array: NDArray[Any]) -> None:
    io.bind_output(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
