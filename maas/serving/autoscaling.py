"""How many replicas a deployment should have: Ray Serve asks, the engines' own load decides.

Serve cannot count requests itself, as none pass through it. Each replica reports what its
engine says: requests running and waiting (``EngineReplica.record_autoscaling_stats``).
"""

import math
from typing import Any, cast

from ray.serve.config import AutoscalingConfig, AutoscalingContext

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


def scale_on_engine_load(context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
    """Serve's autoscaling policy: requests running and waiting against the target."""
    config = cast("AutoscalingConfig", context.config)
    reported = (context.aggregated_metrics or {}).get(ONGOING_METRIC, {})
    wanted = num_replicas_for(
        ongoing=sum(reported.values()),
        target=config.get_target_ongoing_requests(),
        current=context.current_num_replicas,
        min_replicas=context.capacity_adjusted_min_replicas,
        max_replicas=context.capacity_adjusted_max_replicas,
    )
    return wanted, context.policy_state
