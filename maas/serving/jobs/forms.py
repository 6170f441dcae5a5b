"""The two forms in which what was tuned is kept and served: adapters, and whole weights.

An adapter is loaded by the engines of its base. Whole weights run on an engine of their own: a
deployment like any other, with the base's card, that lives and goes with the model.
"""

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

from maas.core.errors import NotFound, Unavailable
from maas.core.settings import Settings
from maas.edge.export.form import PRECISION as FORM_PRECISION
from maas.engines.prepare import folder_name
from maas.finetune.adapter_files import ADAPTER_NAMES
from maas.finetune.receipt.parity import measure
from maas.finetune.receipt.records import Receipt
from maas.finetune.registry import AdapterRegistry
from maas.finetune.train.spec import TrainSpec, golden_file
from maas.finetune.whole_weights import blob_key_of, keep_weights, weights_id
from maas.serving.jobs.tools import Tools
from maas.store.adapters import TunedKind, TunedModel, engine_name
from maas.store.job_records import Job
from maas.store.records import Deployment, Replica, ReplicaState

_POLL_S = 0.1
# What of a base's deployment is about the machine, not about its weights.
_SAME_AS_BASE = (
    *("dtype", "max_model_len", "max_num_seqs", "max_num_batched_tokens", "kv_cache_bytes"),
    *("gpu_memory_utilization", "tensor_parallel_size", "extra_engine_args"),
)


@dataclass(frozen=True)
class Content:
    """What was tuned, by its content.

    Attributes:
        adapter_id: Of an adapter.
        weights_key: Where whole weights are stored.
    """

    kind: TunedKind
    adapter_id: str | None = None
    weights_key: str | None = None


class Form(Protocol):
    """How one kind of what was tuned is kept and served. Each step may be done again."""

    def take(self, job: Job, folder: Path) -> Content:
        """Return what a folder holds."""
        ...

    def serve(self, model: TunedModel, folder: Path) -> None:
        """Have a model served that is written down.

        Raises:
            NotFound: It was deleted meanwhile.
        """
        ...

    def wait_until_served(self, job: Job, models: Sequence[TunedModel]) -> Replica | None:
        """Return a replica that answers for all of a job's models; none where none should.

        Raises:
            Unavailable: There is none in time; the message says why.
        """
        ...

    def measure(self, spec: TrainSpec, model: TunedModel, replica: Replica | None) -> Receipt:
        """Return the receipt of a model."""
        ...


@dataclass(frozen=True)
class AdapterForm:
    """Adapters: replicas of the base load them by themselves."""

    tools: Tools
    settings: Settings

    def take(self, job: Job, folder: Path) -> Content:
        """Store a checkpoint's adapter, without what only the trainer needs."""
        scratch = self.settings.home / "scratch"
        scratch.mkdir(parents=True, exist_ok=True)
        registry = AdapterRegistry(
            self.tools.blobs, self.tools.adapters, self.tools.tuned_models, scratch
        )
        with TemporaryDirectory(dir=scratch) as copy:
            for name in ADAPTER_NAMES:
                shutil.copy(folder / name, Path(copy) / name)
            adapter = registry.take(Path(copy), job.base_model_id, base=None)
        return Content(TunedKind.ADAPTER, adapter_id=adapter.id)

    def serve(self, model: TunedModel, folder: Path) -> None:
        """Do nothing: it is stored, and a row is all that replicas look at."""

    def wait_until_served(self, job: Job, models: Sequence[TunedModel]) -> Replica | None:
        """Return a replica that holds every adapter; none where the base is not served.

        Raises:
            Unavailable: The base should be served, and no replica of it has them in time.
        """
        wanted = {engine_name(model.adapter_id) for model in models if model.adapter_id}
        give_up_at = time.monotonic() + self.settings.finetune.publish_timeout_s
        while time.monotonic() < give_up_at:
            serving = self.tools.deployments_of(job.base_model_id)
            if not serving:
                return None
            for replica in _ready(self.tools, serving):
                if wanted <= set(replica.adapters):
                    return replica
            time.sleep(_POLL_S)
        raise Unavailable(f"no replica of {job.base_model_id} holds the new adapter yet")

    def measure(self, spec: TrainSpec, model: TunedModel, replica: Replica | None) -> Receipt:
        """Compare trainer, engine with the adapter, and merged weights."""
        golden = golden_file(spec, str(model.adapter_id))
        if replica is None:
            return measure(golden, engine_url=None, engine_model=None)
        deployment = self.tools.deployments.get(replica.deployment_id)
        return measure(
            golden,
            engine_url=replica.url,
            engine_model=engine_name(str(model.adapter_id)),
            engine_dir=self._served_dir(deployment),
            engine_dtype=_dtype_of(deployment),
        )

    def _served_dir(self, deployment: Deployment) -> Path | None:
        """Return the folder that a deployment's engines read, where it is on this machine."""
        if deployment.engine == "external":
            return None
        card = self.tools.catalog.get_card(deployment.model_id)
        name = folder_name(card, deployment.options.get("quantization"))
        folder = self.settings.weights_dir / name
        return folder if folder.is_dir() else None


@dataclass(frozen=True)
class WeightsForm:
    """Whole weights: a deployment of their own, with the base's card."""

    tools: Tools
    settings: Settings

    def take(self, job: Job, folder: Path) -> Content:  # noqa: ARG002 - as for adapters
        """Return where the weights of a folder will be stored.

        The row comes before the bytes: bytes without one are nobody's and are swept.
        """
        return Content(TunedKind.FULL, weights_key=blob_key_of(weights_id(folder)))

    def serve(self, model: TunedModel, folder: Path) -> None:
        """Store the weights and write down that an engine should run them."""
        weights = keep_weights(self.tools.blobs, folder)
        # With the writers in turn: whoever takes the model away takes its deployment too.
        with self.tools.database.together():
            known = self.tools.tuned_models.find(model.id)
            if known is None or known.deleted_at is not None:
                raise NotFound(f"the model {model.id} was deleted before it was published")
            if not self.tools.deployments_of(model.id):
                deploy_whole(self.tools, model, weights)

    def wait_until_served(self, job: Job, models: Sequence[TunedModel]) -> Replica | None:  # noqa: ARG002 - as for adapters
        """Return the replica that runs the weights.

        Raises:
            Unavailable: There is none in time; the deployment's reason is in the message.
        """
        name = models[0].id
        timeout_s = self.settings.serving.start_timeout_s + self.settings.finetune.publish_timeout_s
        give_up_at = time.monotonic() + timeout_s
        while True:
            serving = self.tools.deployments_of(name)
            for replica in _ready(self.tools, serving):
                return replica
            if not serving or time.monotonic() > give_up_at:
                break
            time.sleep(_POLL_S)
        found = [item for item in self.tools.deployments.list() if item.id in serving]
        why = next((item.reason or item.status for item in found), "it has no deployment")
        raise Unavailable(f"no engine runs {name} yet: {why}")

    def measure(self, spec: TrainSpec, model: TunedModel, replica: Replica | None) -> Receipt:
        """Compare trainer, the saved files and the engine."""
        if replica is None:
            raise Unavailable(f"no engine runs {model.id}")
        weights = str(model.weights_key).rpartition("/")[2]
        folder = self.settings.tuned_weights_dir / weights
        return measure(
            golden_file(spec, weights),
            engine_url=replica.url,
            engine_model=replica.engine_model,
            engine_dir=folder if folder.is_dir() else None,
            engine_dtype=_dtype_of(self.tools.deployments.get(replica.deployment_id)),
        )


def deploy_whole(tools: Tools, model: TunedModel, weights: str) -> Deployment:
    """Write down that a model with weights of its own should run, as its base does."""
    base = next(
        (
            item
            for item in tools.deployments.list()
            if item.model_id == model.base_model_id
            and item.deleted_at is None
            and item.engine != "external"
        ),
        None,
    )
    options: dict[str, Any] = {"base_model": model.base_model_id, "weights": weights}
    options["max_loras"] = 0
    if base is not None:
        options |= {name: base.options[name] for name in _SAME_AS_BASE if name in base.options}
    card = tools.catalog.get_card(model.base_model_id)
    return tools.deployments.create(
        project_id=model.project_id,
        model_id=model.id,
        engine=base.engine if base else next(e for e in card.engines if e != "external"),
        options=options,
    )


def _ready(tools: Tools, deployments: set[str]) -> list[Replica]:
    return [
        replica
        for replica in tools.replicas.live()
        if replica.deployment_id in deployments and replica.state is ReplicaState.READY
    ]


def _dtype_of(deployment: Deployment) -> str | None:
    """Return what an engine was told to compute in; left open, it is the golden file's."""
    if deployment.engine == "onnx":
        return FORM_PRECISION
    dtype = deployment.options.get("dtype")
    return None if dtype == "auto" else dtype
