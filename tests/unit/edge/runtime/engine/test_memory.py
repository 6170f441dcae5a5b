"""Memory for keys and values: at most what was allowed, and given back when requests end."""

import queue
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from maas.edge.runtime.engine.contract import Output, SamplingParams
from maas.edge.runtime.engine.core import OnnxEngine
from maas.edge.runtime.engine.model import DecoderModel, SlotCache
from maas.edge.runtime.engine.options import EngineOptions
from maas.edge.runtime.engine.pages import Slab, zeros_in_pages
from maas.edge.runtime.engine.prefixes import PrefixCache

MIB = 1 << 20
# What onnxruntime keeps of a step, and whatever else this process does meanwhile.
SLACK_BYTES = 12 * MIB
PLAIN = {"num_threads": 1, "enable_spinning": False, "max_num_seqs": 4}


def resident_bytes() -> int:
    """Return the memory this process has in fact."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))


def prompt(seed: int, length: int) -> list[int]:
    return [int(n) for n in np.random.default_rng(seed).integers(0, 256, length)]


def run_all(engine: OnnxEngine, lengths: list[int], num_new: int = 40) -> int:
    """Answer prompts of these lengths together; return the most memory there was meanwhile."""
    params = SamplingParams(num_new, temperature=0.0, ignore_eos=True)
    ended: queue.Queue[Output] = queue.Queue()
    seen = [0]

    def listen(output: Output) -> None:
        # In the engine's thread: between two steps.
        seen.append(resident_bytes())
        if output.finish_reason is not None:
            ended.put(output)

    for seed, length in enumerate(lengths):
        engine.submit(prompt(seed, length), params, listen)
    reasons = [ended.get(timeout=60).finish_reason for _ in lengths]
    assert reasons == ["length"] * len(lengths)
    return max(seen)


@pytest.fixture
def make(wide: Path) -> Iterator[Callable[..., OnnxEngine]]:
    made: list[OnnxEngine] = []

    def start(**options: int) -> OnnxEngine:
        made.append(OnnxEngine(wide, EngineOptions(**(PLAIN | options))))
        # What a long prompt takes beside keys and values is there before anything is counted.
        made[-1].rehearse()
        return made[-1]

    yield start
    for engine in made:
        engine.close()


def test_memory_of_requests_that_ended_is_given_back(make):
    engine = make(kv_cache_bytes=64 * MIB, prefix_cache_bytes=0)
    before = resident_bytes()
    most = run_all(engine, [3000, 3000, 3000, 3000], num_new=250)
    assert most - before > 30 * MIB, "they took what they had to"
    engine.close()
    assert resident_bytes() - before < SLACK_BYTES


def test_running_requests_take_no_more_than_they_may(make):
    engine = make(kv_cache_bytes=16 * MIB, prefix_cache_bytes=0)
    before = resident_bytes()
    # 4 KiB a token: each fits alone, any two hardly, in any slot and in any order.
    most = run_all(engine, [2000, 300, 3500, 100, 2500, 900, 3900, 50, 1500], num_new=120)
    assert most - before < 16 * MIB + SLACK_BYTES


def test_what_is_remembered_takes_no_more_than_it_may(make):
    engine = make(kv_cache_bytes=16 * MIB, prefix_cache_bytes=8 * MIB)
    before = resident_bytes()
    run_all(engine, [1500, 700, 1900, 300, 1200, 1000, 800], num_new=8)
    engine.close()
    kept = resident_bytes() - before
    assert 2 * MIB < kept < 8 * MIB + SLACK_BYTES


def test_slots_are_zeros_again_where_memory_was_given_back():
    slab = Slab((3, 2, 32, 64), np.float32)
    slab.array[:] = 1
    address = slab.array.ctypes.data
    slab.give_back(1)
    assert not slab.array[1].any()
    slab.give_back(2, 16)
    assert (slab.array[2, :, :16] == 1).all()
    assert not slab.array[2, :, 16:].any()
    slab.give_back(0, 17)
    slab.give_back(0, 32)
    assert (slab.array[0] == 1).all(), "the page of the last position stays, and all other slots"
    assert slab.array.ctypes.data == address


def test_a_sequence_that_moves_is_there_once(tiny):
    model = DecoderModel(tiny, EngineOptions(num_threads=1))
    cache = SlotCache(model, 2, 512)
    tokens = np.arange(200, dtype=np.int64)
    cache.extend(0, np.arange(256, dtype=np.int64) % 250, 0)
    cache.extend(1, tokens, 0)
    computed = cache.read(1, 200)
    cache.move(1, 0, 200)
    assert (cache.read(0, 200) == computed).all()
    assert not cache.read(1, 512).any()
    assert not cache.read(0, 512)[:, :, 256:].any()
    cache.empty_all()
    assert not cache.read(0, 512).any()


def test_a_failed_step_leaves_no_memory_behind(make, monkeypatch):
    engine = make(kv_cache_bytes=64 * MIB, prefix_cache_bytes=0)
    before = resident_bytes()

    def fail(*_: object) -> None:
        raise RuntimeError("no step")

    monkeypatch.setattr(SlotCache, "step", fail)
    ended: queue.Queue[Output] = queue.Queue()
    engine.submit(prompt(0, 4000), SamplingParams(9, temperature=0.0, seed=1), ended.put)
    while ended.get(timeout=60).finish_reason != "error":
        continue
    engine.close()
    assert resident_bytes() - before < SLACK_BYTES


def test_room_is_made_before_anything_is_read_for_the_prefix_cache():
    kept = PrefixCache(100_000)
    sizes = []

    def put(seed: int, num_bytes: int) -> None:
        def read() -> np.ndarray:
            sizes.append(kept.num_bytes + num_bytes)
            return zeros_in_pages((num_bytes,), np.uint8)

        kept.put("", np.array(prompt(seed, 32), np.int64), num_bytes, read)

    for seed in range(6):
        put(seed, 40_000)
    put(6, 99_900)
    assert len(sizes) == 6, "what has no room is not read"
    assert max(sizes) <= 100_000
