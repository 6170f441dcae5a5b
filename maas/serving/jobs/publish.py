"""After training: what was tuned is kept by its content, measured where it is served, published.

Nothing is published before its receipt is good, and then all at once: the models, the job's end
and its one charge are one transaction.
"""

import csv
import io
import logging
import re
from pathlib import Path
from typing import Any

from maas.core.errors import ReceiptFailed
from maas.core.settings import Settings
from maas.finetune.code import code_version
from maas.finetune.receipt.records import Receipt
from maas.finetune.train.spec import CheckpointReport, TrainOutcome, TrainSpec
from maas.serving.jobs.desk import JobDesk
from maas.serving.jobs.forms import AdapterForm, Form, WeightsForm
from maas.serving.jobs.tools import Tools
from maas.store.adapters import TunedModel, TunedState
from maas.store.files import NewFile, blob_key_of, new_file_id
from maas.store.job_records import Job, JobChange, JobStatus, Telling

log = logging.getLogger(__name__)

RESULT_PURPOSE = "fine-tune-results"
# Columns of OpenAI's metrics file, with what events call them.
_METRICS = {
    "step": "step",
    "train_loss": "train_loss",
    "train_accuracy": "train_mean_token_accuracy",
    "valid_loss": "valid_loss",
    "valid_mean_token_accuracy": "valid_mean_token_accuracy",
}
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

        Its replicas load it at once; nobody may ask it before the job has succeeded. Whole
        weights would take an engine each: of those only the best ones are kept, at the end.
        """
        if spec.recipe.tuning == "full":
            return
        name = f"{self._name()}:ckpt-step-{checkpoint.step}"
        self._register(spec, name, checkpoint.path, checkpoint.step)
        self._list(spec, name, checkpoint.step, checkpoint.metrics)

    def publish(self, spec: TrainSpec, outcome: TrainOutcome) -> None:
        """Measure the receipts, then publish the model and end the job.

        Raises:
            ReceiptFailed: A model answers differently where it is served.
        """
        if not self._job.is_publishing:
            # Once: what moves forgives failures, and an engine that never starts does not move.
            self._desk.later(progress={**(self._job.progress or {}), "phase": "publishing"})
        best = outcome.output_dir
        if best is None or outcome.best_step is None:
            raise ReceiptFailed("training left nothing to publish")
        form, name = self._form(spec), self._name()
        tuned = self._register(spec, name, best, outcome.best_step)
        if spec.recipe.tuning == "full":
            self._list(spec, name, outcome.best_step, outcome.metrics)
        # By name: of whole weights the best checkpoint is the model.
        models = list({model.id: model for model in (tuned, *self._checkpoints())}.values())
        replica = form.wait_until_served(self._job, models)
        receipts: dict[str, Receipt] = {}
        measured: dict[str | None, Receipt] = {}
        for model in models:
            # The best one is one of the checkpoints.
            if model.adapter_id not in measured:
                measured[model.adapter_id] = form.measure(spec, model, replica)
            receipt = measured[model.adapter_id]
            if receipt.verdict != "passed":
                self._refuse(model, receipt)
            receipts[model.id] = receipt
        self._finish(outcome, models, receipts)

    def _register(self, spec: TrainSpec, name: str, folder: Path, step: int) -> TunedModel:
        form = self._form(spec)
        content = form.take(self._job, folder)
        card = self._tools.catalog.get_card(self._job.base_model_id)
        model = self._tools.tuned_models.add(
            TunedModel(
                id=name,
                project_id=self._job.project_id,
                base_model_id=self._job.base_model_id,
                kind=content.kind,
                adapter_id=content.adapter_id,
                weights_key=content.weights_key,
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
        form.serve(model, folder)
        return model

    def _form(self, spec: TrainSpec) -> Form:
        is_full = spec.recipe.tuning == "full"
        return (WeightsForm if is_full else AdapterForm)(self._tools, self._settings)

    def _list(self, spec: TrainSpec, name: str, step: int, metrics: dict[str, Any]) -> None:
        self._tools.jobs.add_checkpoint(
            self._job.id,
            self._job.attempt,
            step=step,
            metrics=metrics,
            model_id=name,
            keep=spec.recipe.num_checkpoints,
        )

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
        # Rows stay when files are deleted.
        known = {name: self._tools.files.find(name) for name in files}
        data = {name: file.sha256 for name, file in known.items() if file is not None}
        card = self._tools.catalog.get_card(job.base_model_id)
        return {
            "job_id": job.id,
            "data_sha256": data,
            "base": {"id": card.id, "source": list(card.source), "revision": card.revision},
            "recipe": spec.recipe.model_dump(mode="json"),
            "hyperparameters": dict(job.resolved or {}),
            "seed": spec.seed,
            "code_version": code_version(),
            "parent": self._parent(),
        }

    def _parent(self) -> dict[str, Any] | None:
        """Return the tuned model that the job went on from."""
        if self._job.model_id == self._job.base_model_id:
            return None
        found = self._tools.tuned_models.find(self._job.model_id)
        return {"id": self._job.model_id, "adapter": found.adapter_id if found else None}

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
        writer.writerow(_METRICS)
        for row in self._tools.jobs.metrics(job.id):
            writer.writerow([row.get(name, "") for name in _METRICS.values()])
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
