"""One attempt at one job: check the data, or train and publish. No Ray in here.

Every phase looks at what an earlier attempt left: a report, checkpoints, an adapter, a model
row. Doing a phase again changes nothing, so it does not matter where a process was killed.
"""

import errno
import logging
from collections.abc import Callable
from typing import Any

from maas.core.errors import (
    AdapterRefused,
    BudgetExceeded,
    ConfigError,
    DataRefused,
    DiskFull,
    InvalidRequest,
    MaasError,
    NotFound,
    Superseded,
    TrainingFailed,
)
from maas.core.settings import Settings
from maas.finetune.train.spec import (
    CheckpointReport,
    StepReport,
    TrainOutcome,
    TrainSpec,
    read_outcome,
)
from maas.serving.jobs.desk import JobDesk
from maas.serving.jobs.preparation import Preparation
from maas.serving.jobs.publish import Publisher
from maas.serving.jobs.tools import Tools
from maas.store.job_records import JobChange, JobStatus, JobWish, Telling

log = logging.getLogger(__name__)

_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})
# What trying again does not mend.
_FINAL = (
    AdapterRefused,
    BudgetExceeded,
    ConfigError,
    DataRefused,
    InvalidRequest,
    NotFound,
    TrainingFailed,
)
# The controller that still runs must not give it another runner.
STOP_PAUSE_S = 10.0
Fit = Callable[[TrainSpec], TrainOutcome]


class JobRunner:
    """Works on one job until it is over, paused, or cannot go on.

    Args:
        desk: Where it writes.
        tools: Store, blobs, catalog.
        settings: The platform's.
        fit: Trains a spec to its end, or until ``on_step`` says no.
    """

    def __init__(self, desk: JobDesk, tools: Tools, settings: Settings, *, fit: Fit) -> None:
        self._desk = desk
        self._tools = tools
        self._settings = settings
        self._fit = fit
        self._preparation = Preparation(desk, tools, settings)
        self._publisher = Publisher(desk, tools, settings)
        self._spec: TrainSpec | None = None

    def run(self) -> None:
        """Do what the job's status asks for.

        Raises:
            Superseded: The job is not this runner's any more.
            MaasError: Something failed that may be well the next time.
        """
        try:
            if self._desk.job.status is JobStatus.VALIDATING_FILES:
                self._preparation.check()
            else:
                self._train()
        except Superseded:
            raise
        except _FINAL as error:
            self._fail(error)
        except MaasError as error:
            self._desk.write(JobChange(error=_error_of(error)))
            raise
        except OSError as error:
            if error.errno not in _NO_ROOM:
                raise
            full = DiskFull(f"no room on the disk: {error.filename or error.strerror}")
            self._desk.write(JobChange(error=_error_of(full)))
            raise full from error

    def on_step(self, step: StepReport) -> bool:
        """Take a step's report; say whether to go on."""
        metrics = {"step": step.step, "train_loss": step.loss}
        metrics["train_mean_token_accuracy"] = step.mean_token_accuracy
        message = f"Step {step.step}/{step.num_steps}: training loss={step.loss:.4f}"
        self._desk.later(
            Telling(f"step:{step.step}", message, data={**metrics, "total_steps": step.num_steps}),
            progress=step.model_dump(mode="json")
            | {"trained_tokens": step.num_trained_tokens, "phase": "training"},
        )
        return self._desk.may_go_on

    def flush(self) -> None:
        """Write all that was reported.

        Raises:
            Superseded: The job is not this runner's any more.
        """
        self._desk.write(JobChange())

    def on_validation(self, metrics: dict[str, Any]) -> None:
        """Take a validation's report."""
        step = int(metrics["step"])
        loss = float(metrics["valid_loss"])
        message = f"Step {step}: validation loss={loss:.4f}"
        self._desk.later(Telling(f"validation:{step}", message, data=metrics))

    def on_checkpoint(self, checkpoint: CheckpointReport) -> None:
        """Take a checkpoint's report."""
        if self._spec is not None:
            self._publisher.keep_checkpoint(self._spec, checkpoint)

    def _train(self) -> None:
        spec = self._spec = self._preparation.make_spec()
        started = Telling("started", "Fine-tuning job started")
        self._desk.write(JobChange(status=JobStatus.RUNNING, tellings=(started,)))
        # Finished before: an earlier attempt did not come to publish it.
        outcome = read_outcome(spec) or self._fit(spec)
        if outcome.status == "stopped":
            self._stop()
            return
        self._publisher.publish(spec, outcome)

    def _stop(self) -> None:
        """Leave the job where it can be gone on with."""
        job = self._desk.job
        if job.wish is JobWish.PAUSE:
            self._desk.write(JobChange(status=JobStatus.PAUSED, is_released=True))
            return
        # It comes back by itself.
        if job.wish is JobWish.STOP:
            message, pause_s = "The platform stops; goes on from its checkpoint", STOP_PAUSE_S
        else:
            message = "Made room for serving; goes on from its checkpoint when there is room"
            pause_s = self._settings.finetune.yield_pause_s
        self._desk.write(
            JobChange(
                status=JobStatus.QUEUED,
                tellings=(Telling(f"yielded:{job.attempt}", message),),
                retry_at=self._tools.clock.now() + pause_s,
                is_released=True,
            )
        )

    def _fail(self, error: MaasError) -> None:
        log.error("job %s failed: %s", self._desk.job.id, error.message)
        self._tools.end(self._desk, JobChange(status=JobStatus.FAILED, error=_error_of(error)))


def _error_of(error: MaasError) -> dict[str, Any]:
    return {
        "code": error.code,
        "message": error.message,
        "param": error.context.get("param"),
    }
