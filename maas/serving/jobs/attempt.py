"""What is in a runner's process: one attempt at one job, with its trainer on Ray Train."""

import logging
import os
import sys
import threading
from typing import Any

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.base_trainer import TrainingFailedError
from ray.train.torch import TorchTrainer

from maas.core.errors import EngineError, MaasError, Superseded
from maas.core.settings import Settings
from maas.finetune.train.spec import CheckpointReport, StepReport, TrainOutcome, TrainSpec
from maas.finetune.train.worker import train_loop_per_worker
from maas.serving.jobs.desk import JobDesk
from maas.serving.jobs.queue import RunnerId
from maas.serving.jobs.runner import JobRunner
from maas.serving.jobs.tools import open_tools

log = logging.getLogger(__name__)


class WorkerReporter:
    """What a training worker reports to; calls the runner's actor.

    Args:
        actor: The runner.
    """

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def on_step(self, step: StepReport) -> bool:
        """Tell of an optimizer step; false means: keep a checkpoint and stop."""
        return bool(ray.get(self._actor.hear.remote("on_step", step)))

    def flush(self) -> None:
        """Have all that was told kept."""
        ray.get(self._actor.hear.remote("flush"))

    def on_validation(self, metrics: dict[str, float]) -> None:
        """Tell of a validation."""
        ray.get(self._actor.hear.remote("on_validation", metrics))

    def on_checkpoint(self, checkpoint: CheckpointReport) -> None:
        """Tell of a checkpoint that is on the disk."""
        ray.get(self._actor.hear.remote("on_checkpoint", checkpoint))

    def on_outcome(self, outcome: TrainOutcome) -> None:
        """Tell how training ended."""
        ray.get(self._actor.hear.remote("on_outcome", outcome))


class Attempt:
    """Does one attempt at one job, then ends its process.

    Args:
        settings: The platform's.
        runner: Which attempt at which job.
        actor: Handle of the actor it is in: workers report to it.
    """

    def __init__(self, settings: Settings, runner: RunnerId, actor: Any) -> None:
        logging.basicConfig(level=settings.log_level.upper(), stream=sys.stderr)
        self._settings = settings
        self._outcome: TrainOutcome | None = None
        self._tools = open_tools(settings)
        self._handle = actor
        self._runner: JobRunner | None = None
        threading.Thread(target=self._work, args=(runner,), name="job").start()

    def _work(self, runner: RunnerId) -> None:
        code = 1
        try:
            job = self._tools.jobs.find(runner.job_id)
            if job is None or job.attempt != runner.attempt:
                raise Superseded(f"attempt {runner.attempt} at {runner.job_id} is not the newest")
            # A process that lost its job must not go on for a moment: neither do its workers.
            desk = JobDesk(self._tools.jobs, job, on_lost=lambda: os._exit(1))
            desk.start()
            self._runner = JobRunner(desk, self._tools, self._settings, fit=self._fit)
            self._runner.run()
            desk.close()
            code = 0
        except Superseded as error:
            log.warning("%s", error.message)
        except MaasError as error:
            log.error("runner %s of %s: %s", runner.attempt, runner.job_id, error.message)
        except Exception:
            log.exception("runner %s of %s ended", runner.attempt, runner.job_id)
        finally:
            sys.stderr.flush()
            os._exit(code)

    def _fit(self, spec: TrainSpec) -> TrainOutcome:
        """Train on the cluster until it is finished or told to stop.

        Raises:
            EngineError: A worker died.
        """
        self._outcome = None
        has_gpu = ray.cluster_resources().get("GPU", 0) >= 1
        trainer = TorchTrainer(
            train_loop_per_worker,
            train_loop_config={
                "spec": spec.model_dump(mode="json"),
                "reporter": WorkerReporter(self._handle),
            },
            scaling_config=ScalingConfig(
                num_workers=self._settings.finetune.num_workers,
                use_gpu=has_gpu,
                resources_per_worker={"GPU": 1} if has_gpu else {"CPU": 1},
            ),
            run_config=RunConfig(
                name="ray",
                storage_path=str(spec.run_dir),
                # Another attempt is the queue's to give.
                failure_config=FailureConfig(max_failures=0),
                # Threads that spin while they wait take the cores from the engines beside them:
                # four times the processor time was measured on a shared machine.
                worker_runtime_env={"env_vars": {"OMP_WAIT_POLICY": "passive"}},
            ),
        )
        try:
            trainer.fit()
        except TrainingFailedError as error:
            raise EngineError(f"training ended: {str(error).strip()[-800:]}") from error
        if self._outcome is None:
            raise EngineError("training ended without an outcome")
        return self._outcome

    def on_step(self, step: StepReport) -> bool:
        """Take a step's report; say whether to go on."""
        return self._runner is not None and self._runner.on_step(step)

    def flush(self) -> None:
        """Keep all that was reported."""
        if self._runner is not None:
            self._runner.flush()

    def on_validation(self, metrics: dict[str, float]) -> None:
        """Take a validation's report."""
        if self._runner is not None:
            self._runner.on_validation(metrics)

    def on_checkpoint(self, checkpoint: CheckpointReport) -> None:
        """Take a checkpoint's report."""
        if self._runner is not None:
            self._runner.on_checkpoint(checkpoint)

    def on_outcome(self, outcome: TrainOutcome) -> None:
        """Take the outcome."""
        self._outcome = outcome
