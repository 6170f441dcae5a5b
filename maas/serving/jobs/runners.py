"""Runners as Ray actors: detached, so that they outlive the controller that started them."""

import asyncio
import logging
from importlib import import_module
from typing import Any, cast

import ray
from ray.exceptions import RayError

from maas.core.errors import EngineError
from maas.core.settings import Settings
from maas.serving.jobs.queue import RunnerId

log = logging.getLogger(__name__)

_PREFIX = "job"


class JobActor:
    """A runner's actor. It works by itself; its trainer's workers report to it.

    Args:
        settings: The platform's.
        runner: Which attempt at which job.
    """

    def __init__(self, settings: Settings, runner: RunnerId) -> None:
        # By name: the controller, which knows this class, must not load torch.
        module = import_module("maas.serving.jobs.attempt")
        self._attempt = module.Attempt(settings, runner, ray.get_runtime_context().current_actor)

    def hear(self, what: str, *report: Any) -> Any:
        """Take a worker's report: ``on_step``, ``flush``, ``on_checkpoint`` ..."""
        return getattr(self._attempt, what)(*report)


# Many threads: workers report while it works. Nobody starts it again but the queue.
_ACTOR: Any = cast("Any", ray.remote)(num_cpus=0, max_restarts=0, max_concurrency=16)(JobActor)


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
        actor = _ACTOR.options(name=_name_of(runner), lifetime="detached", get_if_exists=True)
        actor.remote(self._settings, runner)

    @staticmethod
    def free_gpus() -> int:
        """Return the GPUs of the cluster that nobody holds."""
        return int(ray.available_resources().get("GPU", 0))

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
