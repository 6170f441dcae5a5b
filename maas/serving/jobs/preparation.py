"""Before training: the files fetched and checked, numbers filled in, money held, the spec made."""

from pathlib import Path
from typing import Any

from maas.catalog.card import ModelCard
from maas.catalog.machine import probe_machine
from maas.catalog.weights.files import source_access
from maas.core.errors import DataRefused, NotFound
from maas.core.settings import Settings
from maas.engines.prepare import prepare_model
from maas.engines.tuning import choose_dtype
from maas.finetune.adapter_files import ADAPTER_NAMES, check_adapter
from maas.finetune.data.child import check_files
from maas.finetune.data.estimate import duration, tokens_per_second
from maas.finetune.recipe import Hyperparameters, Recipe, load_recipes, resolve
from maas.finetune.registry import blob_key_of
from maas.finetune.train.spec import TrainSpec
from maas.serving.jobs.desk import JobDesk
from maas.serving.jobs.tools import Tools
from maas.store.job_records import Job, JobChange, JobStatus, Telling


class Preparation:
    """Makes a job ready to train.

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

    @property
    def run_dir(self) -> Path:
        """The job's folder."""
        return self._settings.jobs_dir / self._job.id

    def check(self) -> None:
        """Check the files; then the job may wait for its turn.

        Raises:
            DataRefused: They cannot be trained on; the report is on the job.
            BudgetExceeded: What it may cost is more than is left.
        """
        recipe, card = self._recipe(), self._tools.catalog.get_card(self._job.base_model_id)
        report = self._report(recipe, card)
        if report["errors"]:
            self._desk.write(JobChange(report=report))
            raise DataRefused(_summary(report), param="training_file")
        numbers = resolve(recipe, self._asked(), num_examples=report["num_examples"])
        tokens = int(report["num_tokens"]) * numbers.n_epochs
        seconds = self._seconds(tokens, recipe, card)
        quote = self._tools.ledger.quote(self._job, tokens, seconds=seconds)
        self._tools.ledger.hold(self._job, quote)
        self._desk.write(
            JobChange(
                status=JobStatus.QUEUED,
                report=report,
                resolved=numbers.model_dump(),
                tellings=(
                    Telling("validated", "Files validated, moving job to queued state"),
                    Telling(
                        "estimate",
                        f"At most {tokens} tokens, {quote.cost} {quote.currency}; training takes "
                        f"about {duration(seconds)}",
                    ),
                ),
                is_released=True,
            )
        )

    def make_spec(self) -> TrainSpec:
        """Return what to train, with the files in place."""
        job, recipe = self._job, self._recipe()
        parent = self._fetch_parent()
        if parent is not None:
            recipe = _shaped_as(recipe, parent)
        card = self._tools.catalog.get_card(job.base_model_id)
        numbers = Hyperparameters.model_validate(dict(job.resolved or {}))
        train_file, validation_file = self._fetch()
        return TrainSpec(
            run_dir=self.run_dir,
            model_dir=self._model_dir(card),
            train_file=train_file,
            validation_file=validation_file,
            method=recipe.method,
            recipe=recipe,
            n_epochs=numbers.n_epochs,
            batch_size=numbers.batch_size,
            learning_rate=recipe.learning_rate * numbers.learning_rate_multiplier,
            beta=numbers.beta or recipe.beta,
            start_from=parent,
            # torch takes no more than 64 bits.
            seed=job.seed % 2**32,
            max_length=recipe.max_length or card.context,
            strategy=self._settings.finetune.strategy,
            golden_dtype=self._served_dtype(card),
        )

    def _recipe(self) -> Recipe:
        recipes = load_recipes(self._settings.finetune.recipes_dir)
        if self._job.recipe not in recipes:
            raise DataRefused(f"there is no recipe {self._job.recipe!r}", param="recipe")
        return recipes[self._job.recipe]

    def _seconds(self, num_tokens: int, recipe: Recipe, card: ModelCard) -> float:
        """Return what training would take, roughly: of processors; a GPU is faster."""
        cores = probe_machine(self._settings.weights_dir).num_cores
        tuning = "full" if recipe.tuning == "full" else "lora"
        speed = tokens_per_second(card.parameters, num_cores=cores, tuning=tuning)
        return num_tokens / (speed * self._num_workers)

    @property
    def _num_workers(self) -> int:
        finetune = self._settings.finetune
        # Where there is one machine, workers share its cores.
        return 1 if self._settings.serving.ray_address is None else finetune.num_workers

    def _asked(self) -> dict[str, Any]:
        method = dict(self._job.method)
        given = dict(method.get(str(method["type"])) or {}).get("hyperparameters") or {}
        return {name: value for name, value in given.items() if name != "recipe"}

    def _model_dir(self, card: ModelCard) -> Path:
        prepared = prepare_model(
            card,
            weights_dir=self._settings.weights_dir,
            progress=lambda _: None,
            allow_remote_code=self._settings.allow_remote_code,
            allow_pickle=self._settings.allow_pickle,
            access=source_access(self._settings),
        )
        return prepared.model_dir

    def _served_dtype(self, card: ModelCard) -> str:
        dtype = choose_dtype(card, probe_machine(self._settings.weights_dir))
        return card.dtype if dtype == "auto" else dtype

    def _fetch(self) -> tuple[Path, Path | None]:
        """Return the files on this machine's disk, fetched where they are not there yet."""
        job = self._job
        train = self._tools.fetch_file(job, job.training_file, self.run_dir / "data")
        if job.validation_file is None:
            return train, None
        return train, self._tools.fetch_file(job, job.validation_file, self.run_dir / "data")

    def _fetch_parent(self) -> Path | None:
        """Return the adapter that the job goes on from, on this machine's disk.

        Raises:
            NotFound: It was deleted before the job had it.
        """
        job, folder = self._job, self.run_dir / "parent"
        if job.model_id == job.base_model_id:
            return None
        if not folder.exists():
            model = self._tools.tuned_models.find(job.model_id)
            if model is None or model.deleted_at is not None or model.adapter_id is None:
                raise NotFound(f"the model {job.model_id!r} was deleted", param="model")
            self._tools.blobs.get_folder(blob_key_of(model.adapter_id), folder, ADAPTER_NAMES)
        return folder

    def _report(self, recipe: Recipe, card: ModelCard) -> dict[str, Any]:
        train, validation = self._fetch()
        # In a process of its own: whatever the data does to it, the runner lives.
        report = check_files(
            train,
            validation,
            method=recipe.method,
            model_dir=self._model_dir(card),
            max_length=recipe.max_length or card.context,
        )
        return report.model_dump(mode="json")


def _shaped_as(recipe: Recipe, adapter: Path) -> Recipe:
    """Return the recipe for going on from an adapter: its rank and layers stay as they are."""
    facts = check_adapter(adapter, None)
    changes = {"r": facts.r, "target_modules": facts.target_modules}
    # As strong for its rank as the recipe has it; the trainer scales the adapter to it.
    changes["lora_alpha"] = max(1, round(recipe.lora_alpha * facts.r / recipe.r))
    return Recipe.model_validate(recipe.model_dump() | changes)


def _summary(report: dict[str, Any]) -> str:
    first = report["errors"][0]
    more = report["num_errors"] - 1
    rest = f" (and {more} more; the job's report lists them)" if more else ""
    return f"{first['file']} line {first['line']}: {first['message']}{rest}"
