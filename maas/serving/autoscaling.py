"""How many replicas a deployment should have: Ray Serve asks, the engines' own load decides.

Serve cannot count requests itself, as none pass through it. Each replica reports what its
engine says: requests running and waiting (``EngineReplica.record_autoscaling_stats``).
"""

from typing import Any, cast

from ray.serve.config import AutoscalingConfig, AutoscalingContext

from maas.serving.scaling import ONGOING_METRIC, num_replicas_for


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
