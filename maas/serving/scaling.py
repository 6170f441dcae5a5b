"""The rule of autoscaling, free of Ray: how many replicas hold a load."""

import math

ONGOING_METRIC = "ongoing_requests"


def num_replicas_for(
    *, ongoing: float, target: float, current: int, min_replicas: int, max_replicas: int
) -> int:
    """Return the replicas that hold ``ongoing`` requests at ``target`` each.

    Scaling down needs a margin of 10 %, so that a load at the border does not start and stop
    an engine again and again.

    Args:
        ongoing: Requests running and waiting over all replicas.
        target: Requests one replica should hold.
        current: Replicas there are now.
        min_replicas: Never fewer.
        max_replicas: Never more.
    """
    wanted = math.ceil(ongoing / target)
    if wanted < current:
        wanted = math.ceil(ongoing * 1.1 / target)
    return max(min_replicas, min(wanted, max_replicas))
