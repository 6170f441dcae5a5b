"""What a new job is made of, checked; how one is cancelled."""

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from maas.catalog.card import ModelCard
from maas.core.errors import CapabilityMissing, InvalidRequest, LimitExceeded, NotFound
from maas.engines.tuning import TAKES_ADAPTERS
from maas.finetune.charges import TrainingLedger
from maas.finetune.recipe import Recipe, check_hyperparameters
from maas.finetune.registry import check_allows_tuning
from maas.gateway.authority import ProjectAuthority
from maas.gateway.fine_tuning.schemas import HyperparametersBody, JobBody
from maas.store.adapters import TunedKind, TunedModel, TunedModelRepository, TunedState
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
        has_gpu: Whether training has a GPU; none where only the cluster knows.
    """

    database: Database
    jobs: JobRepository
    files: FileRepository
    tuned_models: TunedModelRepository
    ledger: TrainingLedger
    recipes: Mapping[str, Recipe]
    cards: Mapping[str, ModelCard]
    max_unfinished: int
    has_gpu: Callable[[], bool | None]

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
        who.access.check_model(body.model, body.model)
        parent = self._parent(project_id, body.model)
        card = self._base(parent.base_model_id if parent else body.model, recipe)
        if parent is not None:
            check_goes_on(parent, recipe)
        self._check_can_run(card, recipe)
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

    def _parent(self, project_id: str, model: str) -> TunedModel | None:
        """Return the project's tuned model of this name; none where there is none to go on from."""
        found = None if model in self.cards else self.tuned_models.find(model)
        if found is None or found.project_id != project_id or found.deleted_at is not None:
            return None
        return found if found.state is TunedState.PUBLISHED else None

    def _check_can_run(self, card: ModelCard, recipe: Recipe) -> None:
        """Refuse now what would be found out after the data was checked, or after training.

        Raises:
            CapabilityMissing: Nothing here can train it, or serve what comes of it.
        """
        if recipe.tuning == "qlora" and self.has_gpu() is False:
            raise CapabilityMissing(
                f"recipe {recipe.name} needs a GPU, and there is none here; use recipe lora, which "
                "makes the same kind of model, or a machine with a GPU",
                param="hyperparameters.recipe",
            )
        if card.trust_remote_code:
            raise CapabilityMissing(
                f"{card.id} brings code of its own, and training runs none; tune another model",
                param="model",
            )
        engines = [engine for engine in card.engines if engine != "external"]
        takes = any(card.architecture in TAKES_ADAPTERS.get(name, ()) for name in engines)
        if recipe.tuning == "full" and not engines:
            raise CapabilityMissing(
                f"no engine here runs weights of {card.id}: recipe {recipe.name} would be in vain",
                param="model",
            )
        if recipe.tuning != "full" and not takes:
            raise CapabilityMissing(
                f"no engine serves adapters of {card.id} ({card.architecture}); tune with recipe "
                "full",
                param="hyperparameters.recipe",
            )

    def _base(self, model: str, recipe: Recipe) -> ModelCard:
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


def check_goes_on(parent: TunedModel, recipe: Recipe) -> None:
    """Check that a recipe can go on from a tuned model.

    Raises:
        InvalidRequest: It cannot; the message says what can.
    """
    if parent.kind is TunedKind.FULL:
        raise InvalidRequest(
            f"{parent.id} was tuned whole: there is no going on from it; tune "
            f"{parent.base_model_id} with the data of both",
            param="model",
        )
    if recipe.tuning == "full":
        raise InvalidRequest(
            f"recipe {recipe.name} tunes whole weights and {parent.id} is an adapter: go on with "
            f"an adapter's recipe, or tune {parent.base_model_id}",
            param="hyperparameters.recipe",
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
