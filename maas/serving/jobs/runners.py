"""Runners as Ray actors: detached, so that they outlive the controller that started them."""

import asyncio
import logging

import ray
from ray.exceptions import RayError

from maas.core.errors import EngineError
from maas.core.settings import Settings
from maas.serving.jobs.actor import JobActor
from maas.serving.jobs.queue import RunnerId

log = logging.getLogger(__name__)

_PREFIX = "job"


class RayRunners:
    """Starts, lists and kills runners.

    Args:
        settings: Handed to each runner.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    async def alive(self) -> frozenset[RunnerId]:
        """Return the runners there are, those just starting too."""
        names = await asyncio.to_thread(ray.util.list_named_actors)
        found = [name.split("/") for name in names if name.startswith(f"{_PREFIX}/")]
        return frozenset(RunnerId(job_id, int(attempt)) for _, job_id, attempt in found)

    async def start(self, runner: RunnerId) -> None:
        """Start a runner; returns before it is at work.

        Raises:
            EngineError: Ray refuses.
        """
        log.info("starting runner %s of %s", runner.attempt, runner.job_id)
        try:
            await asyncio.to_thread(self._create, runner)
        except (RayError, ValueError) as error:
            raise EngineError(f"no runner could be started: {error}") from error

    def _create(self, runner: RunnerId) -> None:
        actor = JobActor.options(  # pyright: ignore[reportAttributeAccessIssue] - Ray's decorator
            name=_name_of(runner), lifetime="detached", get_if_exists=True
        )
        actor.remote(self._settings, runner)

    async def kill(self, runner: RunnerId) -> None:
        """End a runner and its workers, at once; fine if it is gone."""
        await asyncio.to_thread(self._kill, runner)

    def _kill(self, runner: RunnerId) -> None:
        try:
            actor = ray.get_actor(_name_of(runner))
        except ValueError:
            return
        log.info("killing runner %s of %s", runner.attempt, runner.job_id)
        # Its workers belong to it and end with it.
        ray.kill(actor, no_restart=True)


def _name_of(runner: RunnerId) -> str:
    return f"{_PREFIX}/{runner.job_id}/{runner.attempt}"
