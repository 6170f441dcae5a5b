"""What moves the fleet's rollouts on while a controller leads.

A heartbeat that tells of one failure too many halts its rollout itself; here it halts where too few
have reported for that, and no more will. Each step looks at the store anew and may be done again,
by anybody, after any crash.
"""

import asyncio
import logging

from maas.core.errors import MaasError
from maas.store.enrolment import EnrolmentRepository
from maas.store.rollouts import RolloutRepository

log = logging.getLogger(__name__)

# Passes between two looks for answers that need not be kept any more.
_FORGET_EVERY = 60


class FleetKeeper:
    """Begins stages, completes rollouts, forgets keys that cannot be asked for any more.

    Args:
        rollouts: What goes on.
        enrolment: What is kept for lost answers.
    """

    def __init__(self, rollouts: RolloutRepository, enrolment: EnrolmentRepository) -> None:
        self._rollouts = rollouts
        self._enrolment = enrolment

    async def run(self, interval_s: float) -> None:
        """Run passes until cancelled; one that fails does not keep the next from its turn."""
        num_passes = 0
        while True:
            try:
                await asyncio.to_thread(self.step)
                if num_passes % _FORGET_EVERY == 0:
                    await asyncio.to_thread(self._enrolment.forget)
            except MaasError as error:
                log.error("this pass over the rollouts failed: %s", error.message)
            num_passes += 1
            await asyncio.sleep(interval_s)

    def step(self) -> None:
        """Move each rollout on by at most one stage; one that fails does not stop the others."""
        for rollout_id in self._rollouts.running():
            try:
                if self._rollouts.advance(rollout_id):
                    log.info("rollout %s has a new stage or status", rollout_id)
            except MaasError as error:
                log.error("rollout %s: %s", rollout_id, error.message)
