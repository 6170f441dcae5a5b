"""What a new job is made of, checked; how one is cancelled."""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass

from maas.catalog.card import ModelCard
from maas.core.errors import InvalidRequest, LimitExceeded, NotFound
from maas.finetune.charges import TrainingLedger
from maas.finetune.recipe import Recipe, check_hyperparameters
from maas.finetune.registry import check_allows_tuning
from maas.gateway.authority import ProjectAuthority
from maas.gateway.fine_tuning.schemas import HyperparametersBody, JobBody
from maas.store.adapters import TunedModelRepository
from maas.store.database import Database
from maas.store.files import FileRepository
from maas.store.job_records import Job, NewJob
from maas.store.jobs import JobRepository
from maas.store.text import as_text

MAX_METADATA, MAX_METADATA_KEY, MAX_METADATA_VALUE = 16, 64, 512
DEFAULT_RECIPES = {"supervised": "lora", "dpo": "dpo"}
# On the wire it is a kind of supervised tuning: OpenAI knows no other word for it.
_WIRE_METHODS = {"supervised": {"supervised", "pretrain"}, "dpo": {"dpo"}}


@dataclass(frozen=True)
class FineTuning:
    """What the routes work with.

    Attributes:
        max_unfinished: Jobs of one project that are not over.
    """

    database: Database
    jobs: JobRepository
    files: FileRepository
    tuned_models: TunedModelRepository
    ledger: TrainingLedger
    recipes: Mapping[str, Recipe]
    cards: Mapping[str, ModelCard]
    max_unfinished: int

    def create(self, who: ProjectAuthority, body: JobBody, request_id: str) -> Job:
        """Make a job.

        Raises:
            InvalidRequest: Something is wrong with it; the message says what.
            NotFound: A file or the model is not there.
            LimitExceeded: The project has too many that are not over.
        """
        project_id = who.project.id
        if body.integrations:
            raise InvalidRequest(
                "integrations are not supported: events and webhooks tell the same",
                param="integrations",
            )
        kind, numbers = _method_of(body)
        recipe = self._recipe(kind, numbers.recipe)
        check_hyperparameters(numbers.given())
        if kind != "dpo" and numbers.beta not in {None, "auto"}:
            raise InvalidRequest("beta is of method dpo only", param="hyperparameters.beta")
        card = self._base(who, body.model, recipe)
        for name in ("training_file", "validation_file"):
            self._check_file(project_id, getattr(body, name), name)
        check_metadata(body.metadata or {})
        new = NewJob(
            project_id=project_id,
            key_id=who.access.key.id,
            request_id=request_id,
            model_id=body.model,
            base_model_id=card.id,
            training_file=body.training_file,
            validation_file=body.validation_file,
            suffix=body.suffix,
            seed=secrets.randbelow(2**31) if body.seed is None else body.seed,
            method={"type": kind, kind: {"hyperparameters": numbers.given()}},
            recipe=recipe.name,
            labels=body.metadata or {},
        )
        # Counted by the writer whose turn it is: two at once cannot both be the last one.
        with self.database.together():
            self._check_room(project_id)
            return self.jobs.create(new)

    def cancel(self, project_id: str, job_id: str) -> Job:
        """End a job now and charge what was trained, both or neither."""
        with self.database.together():
            job = self.jobs.cancel(project_id, job_id)
            self.ledger.settle(job)
            return job

    def _check_room(self, project_id: str) -> None:
        num_unfinished = self.jobs.count_unfinished(project_id)
        if num_unfinished >= self.max_unfinished:
            raise LimitExceeded(
                f"the project has {num_unfinished} jobs that are not over; at most "
                f"{self.max_unfinished}",
                limit="unfinished_jobs",
                is_lasting=False,
            )

    def _recipe(self, kind: str, name: str | None) -> Recipe:
        fitting = {
            recipe.name: recipe
            for recipe in self.recipes.values()
            if recipe.method in _WIRE_METHODS[kind]
        }
        recipe = fitting.get(name or DEFAULT_RECIPES[kind])
        if recipe is None:
            raise InvalidRequest(
                f"recipe {name!r} is none of method {kind}; there are {', '.join(sorted(fitting))}",
                param="hyperparameters.recipe",
            )
        return recipe

    def _base(self, who: ProjectAuthority, model: str, recipe: Recipe) -> ModelCard:
        who.access.check_model(model, model)
        card = self.cards.get(model)
        if card is None:
            names = ", ".join(sorted(c.id for c in self.cards.values() if c.task == "generate"))
            raise NotFound(f"no model {model!r} can be tuned; there are {names}", param="model")
        check_allows_tuning(card)
        if card.task != "generate":
            raise InvalidRequest(f"{model} embeds: it cannot be tuned", param="model")
        if card.chat_template is None and recipe.method != "pretrain":
            raise InvalidRequest(
                f"{model} has no chat template: only recipe pretrain fits it", param="model"
            )
        return card

    def _check_file(self, project_id: str, file_id: str | None, param: str) -> None:
        if file_id is None:
            return
        file = self.files.get(project_id, file_id)
        if file.purpose != "fine-tune":
            raise InvalidRequest(
                f"{file_id} has purpose {file.purpose!r}; want 'fine-tune'", param=param
            )


def _method_of(body: JobBody) -> tuple[str, HyperparametersBody]:
    if body.method is None:
        return "supervised", body.hyperparameters or HyperparametersBody()
    if body.hyperparameters is not None:
        raise InvalidRequest("hyperparameters belong into method", param="hyperparameters")
    kind = body.method.type
    other = "dpo" if kind == "supervised" else "supervised"
    if getattr(body.method, other) is not None:
        raise InvalidRequest(f"method is {kind}: leave {other} out", param=f"method.{other}")
    part = getattr(body.method, kind)
    return kind, HyperparametersBody() if part is None else part.hyperparameters


def check_metadata(metadata: Mapping[str, str]) -> None:
    """Check pairs that a job is labelled with, or looked for by.

    Raises:
        InvalidRequest: There are too many, one is too long, or is no text.
    """
    for text in (*metadata, *metadata.values()):
        if text != as_text(text):
            raise InvalidRequest(f"metadata: {text[:40]!r} is no text", param="metadata")
    # SQLite has no way to name such a key when jobs are looked for by it.
    odd = next((key for key in metadata if set(key) & {'"', "\\"}), None)
    if odd is not None:
        raise InvalidRequest(
            f"metadata: the key {odd!r} holds a quote or a backslash", param="metadata"
        )
    is_too_long = any(
        len(key) > MAX_METADATA_KEY or len(value) > MAX_METADATA_VALUE
        for key, value in metadata.items()
    )
    if len(metadata) > MAX_METADATA or is_too_long:
        raise InvalidRequest(
            f"metadata: at most {MAX_METADATA} pairs, keys to {MAX_METADATA_KEY} and values to "
            f"{MAX_METADATA_VALUE} characters",
            param="metadata",
        )
