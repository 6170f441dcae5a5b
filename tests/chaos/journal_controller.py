"""A controller as shipped, on a cluster that is a journal: ``python -m ... SETTINGS_FILE JOURNAL``.

The journal is the cluster's state and its history: every line says which process started or
stopped what. External engines are probed as always; of the others the cluster only takes note.
"""

import asyncio
import fcntl
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import aiohttp

from maas.bootstrap.child import begin
from maas.bootstrap.reconcile import reconcile
from maas.bootstrap.store import open_store
from maas.catalog.catalog import load_catalog
from maas.serving.controller import Application, ApplicationState
from maas.serving.planner import HostPlanner
from maas.store.secrets import SecretBox


@dataclass(frozen=True)
class Note:
    """A plan of which only the name and the bounds matter."""

    deployment_id: str
    bounds: tuple[int, int]

    def matches(self, deployment) -> bool:
        return self.bounds == (deployment.min_replicas, deployment.max_replicas)


def read_journal(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def running_in(lines: list[dict[str, Any]]) -> dict[str, list[int]]:
    """Return what runs after all that, by deployment id: its bounds."""
    running: dict[str, list[int]] = {}
    for line in lines:
        if line["act"] == "start":
            running[line["id"]] = line["bounds"]
        elif line["act"] == "stop":
            running.pop(line["id"], None)
    return running


class JournalCluster:
    """As Serve: applying what runs already changes nothing (but it is written down)."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @contextmanager
    def _locked(self) -> Iterator[tuple[IO[str], list[dict[str, Any]]]]:
        with self._path.open("a+") as journal:
            fcntl.flock(journal, fcntl.LOCK_EX)
            journal.seek(0)
            yield journal, [json.loads(line) for line in journal]

    def _write(self, journal: IO[str], **line: Any) -> None:
        journal.write(json.dumps({"pid": os.getpid(), "at": time.time(), **line}) + "\n")

    async def applications(self) -> dict[str, Application]:
        with self._locked() as (_, lines):
            return {name: Application(ApplicationState.RUNNING) for name in running_in(lines)}

    async def apply(self, plan: Note) -> None:
        with self._locked() as (journal, lines):
            is_new = running_in(lines).get(plan.deployment_id) != list(plan.bounds)
            act = "start" if is_new else "apply"
            self._write(journal, act=act, id=plan.deployment_id, bounds=plan.bounds)

    async def delete(self, deployment_id: str) -> None:
        with self._locked() as (journal, lines):
            act = "stop" if deployment_id in running_in(lines) else "delete"
            self._write(journal, act=act, id=deployment_id)


class NotingPlanner(HostPlanner):
    """Probes external engines; plans nothing else."""

    def plan(self, deployment, *, check_fit):
        return Note(deployment.id, (deployment.min_replicas, deployment.max_replicas))

    async def prepare(self, plan, report):
        pass


async def main(journal: Path) -> None:
    settings = begin()
    store = open_store(settings)
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5.0)) as client:
        planner = NotingPlanner(
            settings=settings,
            catalog=load_catalog(settings.models_dir),
            replicas=store.replicas,
            secrets=SecretBox(settings.home),
            client=client,
            clock=store.clock,
        )
        await reconcile(settings, store, JournalCluster(journal), planner)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[2])))
