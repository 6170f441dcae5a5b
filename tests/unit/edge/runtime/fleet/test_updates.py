"""Updates: a bundle that answers takes the place of the other, all else leaves it there."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import pytest

from maas.core.errors import EngineError
from maas.edge.runtime.engine.options import EngineOptions
from maas.edge.runtime.fleet import trial
from maas.edge.runtime.fleet.seat import Loader, Seat, bring_up
from maas.edge.runtime.fleet.state import Mark, StateFile, Trying
from maas.edge.runtime.fleet.trial import try_apart
from maas.edge.runtime.fleet.updates import Updater
from maas.edge.runtime.fleet.wire import Desired
from maas.edge.runtime.server.served import Serving
from maas.edge.runtime.shelf.shelf import Shelf
from maas.edge.runtime.shelf.sources import FileSource
from maas.protocol.devices import SpeedReport
from tests.fakes.bundles import Made

OPTIONS = EngineOptions(num_threads=1, max_num_seqs=1, enable_spinning=False)
SPEED = SpeedReport(1.0, 2.0, 3.0)


@dataclass
class Yard:
    """A device's parts, without its processes."""

    home: Path
    sources: dict[str, Path]
    tried: list[str]
    failure: Exception | None = None
    available: int = 1 << 40

    def __post_init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """As a new process finds it."""
        self.store = StateFile(self.home)
        self.seat = Seat(Shelf(self.home), Serving(), Loader(OPTIONS))
        self.updater = Updater(
            self.seat,
            self.store,
            lambda bundle_id: FileSource(self.sources[bundle_id]),
            on_change=lambda: None,
            trial=self.trial,
            available=lambda: self.available,
        )
        self.updater.retry_s = 0.02

    async def trial(self, folder: Path, options: EngineOptions) -> SpeedReport:
        self.tried.append(folder.name)
        await asyncio.sleep(0)
        if self.failure is not None:
            raise self.failure
        return SPEED

    async def want(self, made: Made, attempt: int = 0, rollout_id: str | None = None) -> None:
        """Be told what to run, and wait until that is over."""
        self.updater.want(Desired(made.bundle_id, 1, attempt, rollout_id))
        for _ in range(2000):
            if self.updater.progress is None:
                return
            await asyncio.sleep(0.01)
            self.updater.num_contacts += 1
        raise AssertionError("the update does not end")

    @property
    def in_use(self) -> tuple[str | None, str | None]:
        """What answers, and what a new process would begin with."""
        current = self.seat.shelf.current()
        return self.seat.bundle_id, current.manifest.bundle_id if current else None

    @property
    def told(self) -> tuple[str, str | None, str | None] | None:
        result = self.store.state.result
        return result and (result.status, result.phase, result.error)


@pytest.fixture
async def yard(one: Made, two: Made, tmp_path: Path) -> AsyncIterator[Yard]:
    sources = {made.bundle_id: made.path for made in (one, two)}
    made = Yard(tmp_path / "home", sources, [])
    await made.want(one)
    made.store.change(result=None)
    yield made
    await made.updater.close()
    await made.seat.close()


async def test_a_bundle_is_tried_loaded_and_in_use(yard, one, two):
    assert yard.in_use == (one.bundle_id, one.bundle_id)
    await yard.want(two, 3)
    assert yard.in_use == (two.bundle_id, two.bundle_id)
    assert yard.tried == [one.bundle_id, two.bundle_id]
    assert yard.told == ("succeeded", None, None)
    state = yard.store.state
    assert (state.trying, state.failed) == (None, None)
    assert (state.speed, state.succeeded) == (SPEED, Mark(two.bundle_id, 3))
    # Back again, nothing is fetched.
    yard.sources.clear()
    await yard.want(one)
    assert yard.in_use == (one.bundle_id, one.bundle_id)


@pytest.mark.parametrize(("parser", "reads"), [("hermes", True), ("llama3_json", False)])
async def test_the_agent_offers_tools_only_where_it_reads_their_calls(yard, forge, parser, reads):
    made = forge(f"tools {parser}", tool_call_parser=parser)
    yard.sources[made.bundle_id] = made.path
    await yard.want(made)
    assert yard.seat.bundle_id == made.bundle_id
    assert yard.seat.serving.current.reads_tools == reads


async def test_what_answers_is_not_brought_again_but_told_once_for_a_new_attempt(yard, one):
    await yard.want(one)
    assert yard.told is None
    await yard.want(one, 2, "rollout")
    assert yard.told == ("succeeded", None, None)
    yard.store.change(result=None)
    await yard.want(one, 2, "rollout")
    assert yard.told is None
    assert yard.tried == [one.bundle_id]


async def test_a_failed_trial_leaves_the_old_one_and_is_not_repeated(yard, one, two):
    yard.failure = EngineError("a crash")
    await yard.want(two, 1)
    assert yard.told == ("failed", "trial", "a crash")
    assert yard.in_use == (one.bundle_id, one.bundle_id)
    num_tried = len(yard.tried)
    yard.failure = None
    yard.restart()
    await bring_up(yard.seat, yard.store)
    for attempt in (0, 1):
        await yard.want(two, attempt)
    assert len(yard.tried) == num_tried
    await yard.want(two, 2)
    assert yard.in_use == (two.bundle_id, two.bundle_id)


async def test_a_bundle_that_failed_is_tried_again_when_another_was_wanted_meanwhile(
    yard, one, two
):
    yard.failure = EngineError("a crash")
    await yard.want(two)
    yard.failure = None
    await yard.want(one)
    await yard.want(two)
    assert yard.in_use == (two.bundle_id, two.bundle_id)


async def test_a_bundle_that_does_not_load_here_leaves_the_old_one(yard, one, forge):
    broken = forge("broken", broken_graph=True)
    yard.sources[broken.bundle_id] = broken.path
    await yard.want(broken)
    status, phase, error = yard.told
    assert (status, phase) == ("failed", "load")
    assert "onnxruntime does not load it" in error
    assert yard.in_use == (one.bundle_id, one.bundle_id)
    assert yard.seat.serving.current is not None


async def test_another_maker_s_bundle_is_refused(yard, one, forge):
    theirs = forge("theirs", key="other")
    yard.sources[theirs.bundle_id] = theirs.path
    await yard.want(theirs)
    assert yard.told[:2] == ("failed", "verify")
    assert "nobody here trusts" in yard.told[2]
    assert yard.tried == [one.bundle_id]


async def test_changed_bytes_are_refused(yard, forge, tmp_path):
    made = forge("changed", big_bytes=4096)
    data = bytearray(made.path.read_bytes())
    data[made.path.read_bytes().rindex(b"big.bin") + 700] ^= 1
    yard.sources[made.bundle_id] = tmp_path / "changed"
    (tmp_path / "changed").write_bytes(data)
    await yard.want(made)
    assert yard.told[:2] == ("failed", "verify")
    assert "not those the manifest names" in yard.told[2]


async def test_a_truncated_bundle_fails_where_the_gateway_is_there(yard, two, tmp_path):
    yard.sources[two.bundle_id] = tmp_path / "cut"
    (tmp_path / "cut").write_bytes(two.path.read_bytes()[:-900_000])
    await yard.want(two)
    assert yard.told[:2] == ("failed", "pull")
    assert "the source ended after" in yard.told[2]


async def test_a_line_that_is_cut_is_no_failure_of_the_bundle(yard, two, tmp_path):
    yard.sources[two.bundle_id] = tmp_path / "later"
    yard.updater.want(Desired(two.bundle_id))
    await asyncio.sleep(0.3)
    assert (yard.updater.progress.status, yard.updater.progress.phase) == ("downloading", "pull")
    (tmp_path / "later").write_bytes(two.path.read_bytes())
    await yard.want(two)
    assert yard.in_use == (two.bundle_id, two.bundle_id)


async def test_another_bundle_than_the_one_that_was_asked_for_is_refused(yard, one, two):
    yard.sources["f" * 64] = two.path
    await yard.want(Made(two.path, "f" * 64, 0))
    assert yard.told[:2] == ("failed", "verify")
    assert "another bundle" in yard.told[2]
    await yard.want(Made(two.path, "../../etc", 0))
    assert "no id of a bundle" in yard.told[2]
    assert yard.in_use == (one.bundle_id, one.bundle_id)


async def test_what_is_wanted_no_more_is_given_up(yard, one, two, tmp_path):
    yard.sources[two.bundle_id] = tmp_path / "never"
    yard.updater.want(Desired(two.bundle_id))
    await asyncio.sleep(0.05)
    await yard.want(one)
    assert (yard.told, yard.store.state.trying) == (None, None)
    assert yard.in_use == (one.bundle_id, one.bundle_id)


@pytest.mark.parametrize("num_whole", [0, 1 << 20])
async def test_a_bundle_that_drips_is_given_up_when_it_is_wanted_no_more(yard, one, two, num_whole):
    class Drip:
        def read(self, offset: int, size: int) -> Iterator[bytes]:
            data = two.path.read_bytes()[offset : offset + size]
            first = max(0, num_whole - offset)
            yield data[:first]
            for place in range(first, len(data)):
                time.sleep(0.02)
                yield data[place : place + 1]

    yard.updater._source_of = lambda _: Drip()
    yard.updater.want(Desired(two.bundle_id))
    await asyncio.sleep(0.3)
    assert yard.updater.progress.status == "downloading"
    yard.updater.want(None)
    for _ in range(100):
        if yard.updater.progress is None:
            break
        await asyncio.sleep(0.02)
    assert yard.updater.progress is None
    assert yard.told is None
    # Nobody holds the shelf.
    yard.seat.shelf.switch(one.bundle_id)


async def test_memory_for_one_bundle_only_closes_the_old_one_first(yard, one, two):
    yard.available = 1000
    seen: list[object] = []
    before = yard.trial

    async def trial(folder: Path, options: EngineOptions) -> SpeedReport:
        seen.append(yard.seat.serving.current)
        return await before(folder, options)

    yard.updater._trial = trial
    await yard.want(two)
    assert seen == [None]
    assert yard.in_use == (two.bundle_id, two.bundle_id)
    yard.failure = EngineError("a crash")
    await yard.want(one)
    assert yard.told[:2] == ("failed", "trial")
    assert yard.in_use == (two.bundle_id, two.bundle_id)
    assert yard.seat.serving.current is not None


async def test_a_bundle_that_never_fits_is_refused_with_the_numbers(yard, one, forge):
    huge = forge("huge", ram_required_bytes=1 << 50)
    yard.sources[huge.bundle_id] = huge.path
    engine = yard.seat.serving.current.engine
    await yard.want(huge)
    assert yard.told[:2] == ("failed", "trial")
    assert "MB of memory" in yard.told[2]
    assert yard.seat.serving.current.engine is engine


async def test_what_the_agents_flags_allow_is_counted_and_what_would_fit_is_said(yard, forge):
    card = {"ram_model_bytes": 10**9, "kv_bytes_per_token": 10**6}
    large = forge("large", cost_card=card, max_model_len=1000)
    yard.sources[large.bundle_id] = large.path
    # Beside the model's 1.1 GB one request of 1,000 tokens, and what is remembered.
    need = 11 * 10**8 + 10**9 + OPTIONS.prefix_cache_bytes
    yard.available = need - (2 << 20) - 1
    await yard.want(large)
    assert yard.told[:2] == ("failed", "trial")
    assert "needs 2368 MB of memory (model 1100, keys and values 1000," in yard.told[2]
    assert yard.told[2].endswith("it fits with --prefix-cache-mb 254")
    yard.available = need
    await yard.want(large, 1)
    assert yard.told[0] == "succeeded"


async def test_an_agent_that_died_once_goes_on_with_what_it_had_switched_to(yard, one, two):
    await yard.want(two, 5)
    yard.store.change(trying=Trying(Mark(two.bundle_id, 5), 1), result=None, succeeded=None)
    yard.restart()
    await bring_up(yard.seat, yard.store)
    assert yard.in_use == (two.bundle_id, two.bundle_id)
    assert yard.store.state.trying is None
    assert yard.told == ("succeeded", None, None)


async def test_an_agent_that_died_twice_goes_back_and_does_not_try_again(yard, one, two):
    await yard.want(two, 5)
    yard.store.change(trying=Trying(Mark(two.bundle_id, 5), 2), result=None)
    yard.restart()
    await bring_up(yard.seat, yard.store)
    assert yard.in_use == (one.bundle_id, one.bundle_id)
    assert yard.told[:2] == ("failed", "load")
    assert "died 2 times" in yard.told[2]
    await yard.want(two, 5)
    assert yard.in_use == (one.bundle_id, one.bundle_id)
    await yard.want(two, 6)
    assert yard.in_use == (two.bundle_id, two.bundle_id)


async def test_an_agent_that_died_twice_in_the_trial_does_not_try_again(yard, one, two):
    for num_starts in (1, 2):
        yard.failure = RuntimeError("stands for kill -9")
        yard.store.change(trying=Trying(Mark(two.bundle_id, 5), num_starts))
        yard.restart()
        await bring_up(yard.seat, yard.store)
    assert yard.told[:2] == ("failed", "load")
    assert yard.in_use == (one.bundle_id, one.bundle_id)
    await yard.want(two, 5)
    assert yard.tried == [one.bundle_id]


async def test_the_first_bundle_of_all_that_kills_is_left_alone(tmp_path, one):
    yard = Yard(tmp_path / "home", {one.bundle_id: one.path}, [])
    await yard.want(one, 1)
    yard.store.change(trying=Trying(Mark(one.bundle_id, 1), 2), result=None)
    yard.restart()
    await bring_up(yard.seat, yard.store)
    assert yard.in_use == (None, None)
    await yard.want(one, 1)
    assert yard.in_use == (None, None)
    await yard.want(one, 2)
    assert yard.in_use == (one.bundle_id, one.bundle_id)
    await yard.seat.close()


async def test_an_agent_that_is_told_to_stop_does_not_count_as_dead(yard, two):
    began, never = asyncio.Event(), asyncio.Event()

    async def hang(folder: Path, options: EngineOptions) -> SpeedReport:
        began.set()
        await never.wait()
        return SPEED

    yard.updater._trial = hang
    yard.updater.want(Desired(two.bundle_id, 1, 1))
    await began.wait()
    assert yard.store.state.trying.num_starts == 1
    await yard.updater.close()
    assert yard.store.state.trying.num_starts == 0


async def test_a_damaged_bundle_in_use_is_left_for_the_one_before_and_then_mended(yard, one, two):
    await yard.want(two)
    yard.store.change(result=None)
    path = yard.seat.held.folder / "big.bin"
    path.write_bytes(bytes(path.stat().st_size))
    yard.restart()
    await bring_up(yard.seat, yard.store)
    assert yard.in_use == (one.bundle_id, one.bundle_id)
    assert yard.store.state.errors[-1].code == "bundle_unusable"
    await yard.want(two)
    assert yard.in_use == (two.bundle_id, two.bundle_id)
    yard.seat.shelf.verify(yard.seat.held)


async def test_a_trial_is_a_process_that_measures(one, yard):
    speed = await try_apart(yard.seat.held.folder, OPTIONS)
    assert all(value > 0 for value in msgspec.structs.astuple(speed))


async def test_a_bundle_whose_chats_outgrow_its_context_fails_and_the_old_one_answers(
    yard, one, forge
):
    yard.updater._trial = try_apart
    made = forge("{{ 'x' * 600 }}", name="tiny")
    yard.sources[made.bundle_id] = made.path
    await yard.want(made)
    assert yard.told[:2] == ("failed", "trial")
    assert yard.told[2].startswith("its chat template makes 6")
    assert "it reads 512 with the answer" in yard.told[2]
    assert yard.in_use == (one.bundle_id, one.bundle_id)


async def test_no_bundle_is_loaded_that_has_no_room_for_a_chat(yard, one):
    loader = Loader(replace(OPTIONS, max_model_len=16))
    with pytest.raises(EngineError, match="it reads 16 with the answer"):
        await loader.load(yard.seat.held)


async def test_a_trial_that_fails_or_crashes_says_how(yard, tmp_path, monkeypatch):
    with pytest.raises(EngineError, match="not an unpacked bundle"):
        await try_apart(tmp_path, OPTIONS)
    crash = tmp_path / "crash"
    crash.write_text("#!/bin/sh\nkill -SEGV $$\n")
    crash.chmod(0o755)
    monkeypatch.setattr(trial.sys, "executable", str(crash))
    with pytest.raises(EngineError, match="killed by SIGSEGV"):
        await try_apart(yard.seat.held.folder, OPTIONS)
    crash.write_text("#!/bin/sh\nexec sleep 60\n")
    with pytest.raises(EngineError, match="not done after 0 s"):
        await try_apart(yard.seat.held.folder, OPTIONS, 0.2)
