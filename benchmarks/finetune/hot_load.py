"""From a published row to the first token: ``python -m benchmarks.finetune.hot_load``.

Starts ``maas up`` in a temporary ``MAAS_HOME``. A job's adapter is loaded while it is still a
candidate, so two times are measured for each adapter: from the row of a candidate until a
replica's lease names it (``loaded``), and from the moment it is published until the first token
of a request through the gateway (``published``). The second one is what a user waits for.
"""

import argparse
import json
import platform as host
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from openai import APIStatusError, OpenAI

from benchmarks.finetune.random_adapters import write_random_adapter
from benchmarks.serving.running import MODEL, RunningPlatform
from maas.bootstrap.adapters import open_registry
from maas.bootstrap.store import Store, open_store
from maas.catalog.catalog import load_catalog
from maas.core.ids import new_id
from maas.core.settings import Settings
from maas.finetune.base_modules import BaseModules, read_base_modules
from maas.finetune.registry import public_name
from maas.store.adapters import TunedKind, TunedModel, TunedState, engine_name
from maas.store.jobs import NewJob
from maas.store.state import ensure_project

MAX_S = 0.5
_GIVE_UP_S = 60.0


def until(is_done: Callable[[], bool]) -> float:
    """Return the seconds until something is so."""
    started = time.perf_counter()
    while not is_done():
        if time.perf_counter() - started > _GIVE_UP_S:
            raise TimeoutError("waited too long")
        time.sleep(0.005)
    return time.perf_counter() - started


def answers(client: OpenAI, model: str) -> bool:
    """Say whether a model gives a first token."""
    try:
        stream = client.completions.create(
            model=model, prompt="Once upon a time", max_tokens=1, stream=True
        )
        return any(chunk.choices for chunk in stream)
    except APIStatusError as error:
        # 401: the key was made beside the gateway, which reads it a moment later.
        if error.status_code in {401, 404, 503}:
            return False
        raise


class Site:
    """A running platform's store, with a job that adapters can be of."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.store: Store = open_store(settings)
        self.project_id = ensure_project(self.store.database, self.store.clock)
        self.job_id = self.store.jobs.create(
            NewJob(
                project_id=self.project_id,
                key_id="bench",
                request_id=new_id("req"),
                model_id=MODEL,
                base_model_id=MODEL,
                training_file="none",
                validation_file=None,
                suffix=None,
                seed=1,
                method={"type": "supervised"},
                recipe="lora",
                labels={},
            )
        ).id
        # It has no file: were it to run it would fail, and take its candidates with it.
        self.store.jobs.pause(self.project_id, self.job_id)

    def candidate(self, folder: Path, base: BaseModules) -> TunedModel:
        """Store an adapter as a job does and write down its candidate."""
        registry = open_registry(self.settings, self.store)
        adapter = registry.take(folder, MODEL, base=base)
        card = load_catalog(self.settings.models_dir).get_card(MODEL)
        return self.store.tuned_models.add(
            TunedModel(
                id=public_name(MODEL, "bench", None),
                project_id=self.project_id,
                base_model_id=MODEL,
                kind=TunedKind.ADAPTER,
                adapter_id=adapter.id,
                weights_key=None,
                job_id=self.job_id,
                step=None,
                state=TunedState.CANDIDATE,
                lineage={},
                licence=card.licence.model_dump(mode="json"),
                receipt=None,
                created_at=self.store.clock.now(),
                published_at=None,
                deleted_at=None,
            )
        )

    def is_held(self, model: TunedModel) -> bool:
        """Say whether a replica's lease names its adapter."""
        name = engine_name(str(model.adapter_id))
        return any(name in replica.adapters for replica in self.store.replicas.live())


def measure(site: Site, client: OpenAI, folder: Path, num_adapters: int) -> dict[str, list[float]]:
    """Return the seconds of each adapter."""
    base = read_base_modules(site.settings.weights_dir / MODEL)
    if base is None:
        raise SystemExit(f"{MODEL} has no safetensors")
    found: dict[str, list[float]] = {"loaded": [], "published": []}
    for number in range(num_adapters):
        brought = write_random_adapter(folder / f"a{number}", base, seed=number)
        model = site.candidate(brought, base)
        found["loaded"].append(until(lambda model=model: site.is_held(model)))
        time.sleep(0.31 * (number % 3))  # not in step with anybody's readings
        started = time.perf_counter()
        site.store.tuned_models.judge(model.id, state=TunedState.PUBLISHED, receipt={})
        until(lambda model=model: answers(client, model.id))
        found["published"].append(time.perf_counter() - started)
    return found


def main() -> int:
    """Run the benchmark; 1 where the goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--adapters", type=int, default=10)
    parser.add_argument("--json", type=Path, help="write the figures here")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="maas-bench-") as folder:
        home = Path(folder, "home")
        home.mkdir()
        with RunningPlatform(home) as running:
            site = Site(Settings(home=home).resolved())
            key = site.store.keys.create(
                project_id=site.project_id, name="bench", scopes=("inference",)
            )[1]
            with OpenAI(base_url=f"{running.url}/v1", api_key=key, max_retries=0) as client:
                until(lambda: answers(client, MODEL))
                found = measure(site, client, Path(folder), arguments.adapters)
    print(
        f"{time.strftime('%Y-%m-%d')}, {host.machine()}, {MODEL}, {arguments.adapters} adapters\n"
    )
    print("| from | to | p50 | worst |\n|---|---|---|---|")
    for name, start, end in (
        ("loaded", "row of a candidate", "a lease names it"),
        ("published", "published", "first token"),
    ):
        print(f"| {start} | {end} | {median(found[name]):.3f} s | {max(found[name]):.3f} s |")
    is_met = median(found["published"]) <= MAX_S
    print(f"\npublished to first token <= {MAX_S} s: {'met' if is_met else 'MISSED'}")
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2), encoding="utf-8")
    return 0 if is_met else 1


if __name__ == "__main__":
    raise SystemExit(main())
