"""A runner without Ray, for kills: takes the job as the queue would, trains in this process.

python -m tests.chaos.job_worker SETTINGS_FILE JOB_ID
"""

import os
import sys
from pathlib import Path

from maas.bootstrap.store import read_settings
from maas.finetune.train.spec import TrainOutcome, TrainSpec
from maas.finetune.train.worker import train_loop_per_worker
from maas.serving.jobs.desk import JobDesk
from maas.serving.jobs.runner import JobRunner
from maas.serving.jobs.tools import open_tools


class _Here:
    """Reports to the runner in this process."""

    def __init__(self) -> None:
        self.runner: JobRunner | None = None
        self.outcome: TrainOutcome | None = None

    def __getattr__(self, name: str):
        return getattr(self.runner, name)

    def on_outcome(self, outcome: TrainOutcome) -> None:
        self.outcome = outcome


def main(settings_file: str, job_id: str) -> None:
    settings = read_settings(Path(settings_file))
    tools = open_tools(settings)
    here = _Here()

    def fit(spec: TrainSpec) -> TrainOutcome:
        train_loop_per_worker(
            {"spec": spec.model_dump(mode="json"), "reporter": here, "niceness": 0}
        )
        assert here.outcome is not None
        return here.outcome

    while True:
        job = tools.jobs.find(job_id)
        assert job is not None
        if job.is_over:
            return
        taken = tools.jobs.take(job_id, seen_attempt=job.attempt)
        desk = JobDesk(tools.jobs, taken, on_lost=lambda: os._exit(3))
        desk.start()
        here.runner = JobRunner(desk, tools, settings, fit=fit)
        here.runner.run()
        desk.close()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
