"""After training: adapters kept by their content, measured where they are served, published.

Nothing is published before its receipt is good, and then all at once: the models, the job's end
and its one charge are one transaction.
"""

import csv
import io
import logging
import re
import shutil
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from maas.core.errors import ReceiptFailed, Unavailable
from maas.core.settings import Settings
from maas.engines.prepare import folder_name
from maas.finetune.adapter_files import ADAPTER_NAMES
from maas.finetune.receipt.parity import measure
from maas.finetune.receipt.records import Receipt
from maas.finetune.registry import AdapterRegistry
from maas.finetune.train.spec import CheckpointReport, TrainOutcome, TrainSpec, golden_file
from maas.serving.jobs.desk import JobDesk
from maas.serving.jobs.tools import Tools
from maas.store.adapters import Adapter, TunedKind, TunedModel, TunedState, engine_name
from maas.store.files import NewFile, blob_key_of, new_file_id
from maas.store.job_records import Job, JobChange, JobStatus, Telling
from maas.store.records import Deployment, Replica, ReplicaState

log = logging.getLogger(__name__)

RESULT_PURPOSE = "fine-tune-results"
_POLL_S = 0.1
_NOT_IN_NAMES = re.compile(r"[^a-z0-9-]+")


class Publisher:
    """Publishes what a job made.

    Args:
        desk: Where it writes.
        tools: Store, blobs, catalog.
        settings: The platform's.
    """

    def __init__(self, desk: JobDesk, tools: Tools, settings: Settings) -> None:
        self._desk = desk
        self._tools = tools
        self._settings = settings

    @property
    def _job(self) -> Job:
        return self._desk.job

    def keep_checkpoint(self, spec: TrainSpec, checkpoint: CheckpointReport) -> None:
        """Register a checkpoint under a name of its own; doing so twice is fine.

        Its replicas load it at once; nobody may ask it before the job has succeeded.
        """
        name = f"{self._name()}:ckpt-step-{checkpoint.step}"
        self._register(spec, name, checkpoint.path, checkpoint.step)
        self._tools.jobs.add_checkpoint(
            self._job.id,
            self._job.attempt,
            step=checkpoint.step,
            metrics=checkpoint.metrics,
            model_id=name,
            keep=spec.recipe.num_checkpoints,
        )

    def publish(self, spec: TrainSpec, outcome: TrainOutcome) -> None:
        """Measure the receipts, then publish the model and end the job.

        Raises:
            ReceiptFailed: A model answers differently where it is served.
        """
        self._desk.later(progress={**(self._job.progress or {}), "phase": "publishing"})
        best = outcome.output_dir
        if best is None or outcome.best_step is None:
            raise ReceiptFailed("training left nothing to publish")
        models = [
            self._register(spec, self._name(), best, outcome.best_step),
            *self._checkpoints(),
        ]
        replica = self._wait_until_loaded(models)
        receipts: dict[str, Receipt] = {}
        measured: dict[str | None, Receipt] = {}
        for model in models:
            # The best one is one of the checkpoints.
            if model.adapter_id not in measured:
                measured[model.adapter_id] = self._measure(spec, model, replica)
            receipt = measured[model.adapter_id]
            if receipt.verdict != "passed":
                self._refuse(model, receipt)
            receipts[model.id] = receipt
        self._finish(outcome, models, receipts)

    def _register(self, spec: TrainSpec, name: str, folder: Path, step: int) -> TunedModel:
        adapter = self._take(folder)
        card = self._tools.catalog.get_card(self._job.base_model_id)
        return self._tools.tuned_models.add(
            TunedModel(
                id=name,
                project_id=self._job.project_id,
                base_model_id=self._job.base_model_id,
                kind=TunedKind.ADAPTER,
                adapter_id=adapter.id,
                weights_key=None,
                job_id=self._job.id,
                step=step,
                state=TunedState.CANDIDATE,
                lineage=self._lineage(spec),
                licence=card.licence.model_dump(mode="json"),
                receipt=None,
                created_at=self._tools.clock.now(),
                published_at=None,
                deleted_at=None,
            )
        )

    def _take(self, checkpoint: Path) -> Adapter:
        """Store a checkpoint's adapter, without what only the trainer needs."""
        scratch = self._settings.home / "scratch"
        scratch.mkdir(parents=True, exist_ok=True)
        registry = AdapterRegistry(
            self._tools.blobs, self._tools.adapters, self._tools.tuned_models, scratch
        )
        with TemporaryDirectory(dir=scratch) as folder:
            for name in ADAPTER_NAMES:
                shutil.copy(checkpoint / name, Path(folder) / name)
            return registry.take(Path(folder), self._job.base_model_id, base=None)

    def _checkpoints(self) -> list[TunedModel]:
        """Return the models of the checkpoints that are kept."""
        listed = self._tools.jobs.kept_checkpoints(self._job.id)
        found = [self._tools.tuned_models.find(item.model_id) for item in listed]
        return [model for model in found if model is not None and model.deleted_at is None]

    def _name(self) -> str:
        """Return the public name: the same for every attempt at this job."""
        job = self._job
        project = self._tools.tenancy.projects.get(job.project_id)
        organization = self._tools.tenancy.organizations.find(project.organization_id)
        slug = _NOT_IN_NAMES.sub("-", organization.name.lower()).strip("-")[:40]
        return f"ft:{job.base_model_id}:{slug}:{job.suffix or ''}:{job.id[-10:]}"

    def _lineage(self, spec: TrainSpec) -> dict[str, Any]:
        job = self._job
        files = [name for name in (job.training_file, job.validation_file) if name]
        data = {name: self._tools.files.get(job.project_id, name).sha256 for name in files}
        card = self._tools.catalog.get_card(job.base_model_id)
        return {
            "job_id": job.id,
            "data_sha256": data,
            "base": {"id": card.id, "source": list(card.source), "revision": card.revision},
            "recipe": spec.recipe.model_dump(mode="json"),
            "hyperparameters": dict(job.resolved or {}),
            "seed": spec.seed,
        }

    def _wait_until_loaded(self, models: list[TunedModel]) -> Replica | None:
        """Return a replica that holds every adapter; none where the base is not served.

        Raises:
            Unavailable: The base should be served, and no replica of it has them in time.
        """
        wanted = {engine_name(model.adapter_id) for model in models if model.adapter_id}
        give_up_at = time.monotonic() + self._settings.finetune.publish_timeout_s
        while time.monotonic() < give_up_at:
            serving = self._tools.deployments_of(self._job.base_model_id)
            if not serving:
                return None
            for replica in self._tools.replicas.live():
                is_ready = replica.deployment_id in serving and replica.state is ReplicaState.READY
                if is_ready and wanted <= set(replica.adapters):
                    return replica
            time.sleep(_POLL_S)
        raise Unavailable(f"no replica of {self._job.base_model_id} holds the new adapter yet")

    def _measure(self, spec: TrainSpec, model: TunedModel, replica: Replica | None) -> Receipt:
        golden = golden_file(spec, str(model.adapter_id))
        if replica is None:
            return measure(golden, engine_url=None, engine_model=None)
        deployment = self._tools.deployments.get(replica.deployment_id)
        dtype = deployment.options.get("dtype")
        return measure(
            golden,
            engine_url=replica.url,
            engine_model=engine_name(str(model.adapter_id)),
            engine_dir=self._served_dir(deployment),
            # What the operator said; left open, it is what the golden file was computed in.
            engine_dtype=None if dtype == "auto" else dtype,
        )

    def _served_dir(self, deployment: Deployment) -> Path | None:
        """Return the folder that a deployment's engines read, where it is on this machine."""
        if deployment.engine == "external":
            return None
        card = self._tools.catalog.get_card(deployment.model_id)
        name = folder_name(card, deployment.options.get("quantization"))
        folder = self._settings.weights_dir / name
        return folder if folder.is_dir() else None

    def _refuse(self, model: TunedModel, receipt: Receipt) -> None:
        self._tools.tuned_models.judge(
            model.id, state=TunedState.REFUSED, receipt=receipt.model_dump(mode="json")
        )
        raise ReceiptFailed(f"the receipt of {model.id} failed: {'; '.join(receipt.reasons)}")

    def _finish(
        self, outcome: TrainOutcome, models: list[TunedModel], receipts: dict[str, Receipt]
    ) -> None:
        job = self._job
        result = self._result_file(job)
        ending = JobChange(
            status=JobStatus.SUCCEEDED,
            fine_tuned_model=models[0].id,
            trained_tokens=outcome.num_trained_tokens,
            result_files=(result.id,),
            tellings=(Telling("published", f"New fine-tuned model created: {models[0].id}"),),
        )
        self._desk.close()
        with self._tools.database.together():
            self._tools.files.create(result)
            for model in models:
                self._tools.tuned_models.judge(
                    model.id,
                    state=TunedState.PUBLISHED,
                    receipt=receipts[model.id].model_dump(mode="json"),
                )
            ended = self._desk.write(ending)
            self._tools.ledger.settle(ended)

    def _result_file(self, job: Job) -> NewFile:
        """Return the metrics of every step as a file; its bytes are stored."""
        text = io.StringIO()
        writer = csv.writer(text)
        columns = ("step", "train_loss", "train_mean_token_accuracy", "valid_loss")
        writer.writerow((*columns, "valid_mean_token_accuracy"))
        for row in self._tools.jobs.metrics(job.id):
            writer.writerow([row.get(name, "") for name in (*columns, "valid_mean_token_accuracy")])
        incoming = self._tools.blobs.begin()
        incoming.write(text.getvalue().encode())
        file_id = new_file_id()
        facts = self._tools.blobs.put(blob_key_of(file_id), incoming)
        return NewFile(
            id=file_id,
            project_id=job.project_id,
            filename="step_metrics.csv",
            purpose=RESULT_PURPOSE,
            size_bytes=facts.size_bytes,
            sha256=facts.sha256,
        )
