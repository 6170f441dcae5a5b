"""Which replica gets a request: least outstanding tokens, with prefix affinity.

A request prefers the replica that most likely has its prefix cached: the one that ranks first
by rendezvous hashing of the prompt's first bytes (Thaler & Ravishankar 1998), so no state is
kept and few prompts move when a replica comes or goes. It goes elsewhere when the preferred one
holds more than ``AFFINITY_SLACK_TOKENS`` outstanding tokens above the least loaded one.
"""

import time
from collections.abc import Callable, Collection, Sequence
from hashlib import blake2b

from maas.core.errors import NoReplica
from maas.gateway.relay.snapshot import Target

AFFINITY_SLACK_TOKENS = 2048
PREFIX_BYTES = 1024
SUSPECT_S = 2.0
# What a request that another gateway sent is taken to hold: nobody tells us.
TOKENS_PER_FOREIGN_REQUEST = 256


class Router:
    """Counts outstanding tokens of this gateway and chooses replicas by them."""

    def __init__(self) -> None:
        self.outstanding_tokens: dict[str, int] = {}
        self.outstanding_requests: dict[str, int] = {}
        self._suspect_until: dict[str, float] = {}

    def choose(
        self, targets: Sequence[Target], *, prefix: bytes, tried: Collection[str] = ()
    ) -> Target:
        """Return the replica to ask.

        Args:
            targets: Ready replicas that can do what is asked.
            prefix: Start of the prompt.
            tried: Ids of replicas that failed this request already.

        Raises:
            NoReplica: None is left.
        """
        untried = [target for target in targets if target.replica.id not in tried]
        if len(untried) == 1:
            return untried[0]
        if not untried:
            raise NoReplica("no replica of this model is ready; try again shortly")
        now = time.monotonic()
        trusted = [t for t in untried if self._suspect_until.get(t.replica.id, 0.0) <= now]
        candidates = trusted or untried
        loads = {target.replica.id: self._load(target) for target in candidates}
        least = min(loads.values())
        preferred = max(candidates, key=lambda target: _rank(prefix, target.replica.id))
        if loads[preferred.replica.id] <= least + AFFINITY_SLACK_TOKENS:
            return preferred
        return min(candidates, key=lambda target: loads[target.replica.id])

    def _load(self, target: Target) -> int:
        replica = target.replica
        own = self.outstanding_requests.get(replica.id, 0)
        foreign = max(replica.num_running + replica.num_waiting - own, 0)
        own_tokens = self.outstanding_tokens.get(replica.id, 0)
        return own_tokens + foreign * TOKENS_PER_FOREIGN_REQUEST

    def hold(self, replica_id: str, num_tokens: int) -> Callable[[], None]:
        """Count a request that is sent; call what is returned when it is over."""
        requests, tokens = self.outstanding_requests, self.outstanding_tokens
        requests[replica_id] = requests.get(replica_id, 0) + 1
        tokens[replica_id] = tokens.get(replica_id, 0) + num_tokens

        def release() -> None:
            requests[replica_id] -= 1
            tokens[replica_id] -= num_tokens
            if not requests[replica_id]:
                del requests[replica_id], tokens[replica_id]

        return release

    def suspect(self, replica_id: str) -> None:
        """Prefer others for a moment: this replica just failed."""
        now = time.monotonic()
        self._suspect_until = {k: v for k, v in self._suspect_until.items() if v > now}
        self._suspect_until[replica_id] = now + SUSPECT_S


def _rank(prefix: bytes, replica_id: str) -> bytes:
    return blake2b(prefix, digest_size=8, key=replica_id.encode()[-64:]).digest()
