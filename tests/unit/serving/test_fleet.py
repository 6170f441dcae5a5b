"""The controller's pass over rollouts: what fails stops neither the others nor the next pass."""

import asyncio
import contextlib

from maas.core.errors import StoreUnavailable
from maas.serving.fleet import FleetKeeper


class ScriptedRollouts:
    """Rollouts of which some cannot be read."""

    def __init__(self, *broken: str) -> None:
        self.broken = set(broken)
        self.asked: list[str] = []
        self.is_done = asyncio.Event()
        self.loop: asyncio.AbstractEventLoop | None = None

    def running(self) -> tuple[str, ...]:
        if not self.asked and "all" in self.broken:
            self.asked.append("all")
            raise StoreUnavailable("away")
        return ("one", "two")

    def advance(self, rollout_id: str) -> bool:
        self.asked.append(rollout_id)
        if self.loop is not None and rollout_id == "two":
            self.loop.call_soon_threadsafe(self.is_done.set)
        if rollout_id in self.broken:
            raise StoreUnavailable("away")
        return True


class Codes:
    """Counts how often keys were forgotten."""

    num_times = 0

    def forget(self) -> int:
        self.num_times += 1
        return 0


def test_rollout_that_fails_does_not_stop_the_others():
    rollouts = ScriptedRollouts("one")
    FleetKeeper(rollouts, Codes()).step()
    assert rollouts.asked == ["one", "two"]


async def test_pass_that_fails_does_not_keep_the_next_from_its_turn():
    rollouts, codes = ScriptedRollouts("all"), Codes()
    rollouts.loop = asyncio.get_running_loop()
    task = asyncio.create_task(FleetKeeper(rollouts, codes).run(0.01))
    await asyncio.wait_for(rollouts.is_done.wait(), 5)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert rollouts.asked[:3] == ["all", "one", "two"]
