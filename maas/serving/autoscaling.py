"""How many replicas a deployment should have: Ray Serve asks, the engines' own load decides.

Serve cannot count requests itself, as none pass through it. Each replica reports what its
engine says (``EngineReplica.record_autoscaling_stats``); the rule is in ``maas.serving.scaling``.
"""

from typing import Any, cast

from ray.serve.config import AutoscalingConfig, AutoscalingContext

from maas.serving.scaling import demand_of, num_replicas_for


def scale_on_engine_load(context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
    """Serve's autoscaling policy: requests and tokens, running and waiting, against targets."""
    config = cast("AutoscalingConfig", context.config)
    wanted = num_replicas_for(
        demand_of(
            context.aggregated_metrics or {},
            target_requests=config.get_target_ongoing_requests(),
        ),
        current=context.current_num_replicas,
        min_replicas=context.capacity_adjusted_min_replicas,
        max_replicas=context.capacity_adjusted_max_replicas,
    )
    return wanted, context.policy_state
