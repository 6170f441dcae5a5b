"""The rule of autoscaling, free of Ray: how many replicas hold a load.

::

    wanted = max(requests / target_requests, tokens / target_tokens)     rounded up

over all replicas of a deployment, then held between its bounds. Both terms count the queue
whole: a request that waits is load that the replicas there are do not hold.

- **requests**: running and waiting; the target is the deployment's ``target_ongoing_requests``.
- **tokens**: those whose keys and values are in the KV cache, and for each waiting request as
  many as a running one holds on average. The target is 80 % of the KV cache's tokens: beyond,
  an engine soon has to preempt. Engines report their tokens as a share of that cache, so the
  quotient needs no count: it is the share divided by 0.8. A few very long prompts thus start
  another replica long before there are many requests.

An engine without a KV cache (embeddings) is scaled by its requests alone.
"""

import math
from collections.abc import Mapping
from typing import Any

from maas.engines.contract import EngineLoad

REQUESTS_METRIC = "requests"
TOKENS_METRIC = "kv_cache_share"
TARGET_KV_CACHE_SHARE = 0.8
# Scaling down needs a margin, so that a load at the border does not start and stop an engine
# again and again.
_MARGIN = 1.1


def load_metrics(load: EngineLoad) -> dict[str, float]:
    """Return what a replica reports of its engine: requests, and tokens as a share of its cache."""
    requests = load.num_running + load.num_waiting
    # While none runs, what a waiting one will hold cannot be told: requests alone decide.
    num_times = requests / load.num_running if load.num_running else 1.0
    return {REQUESTS_METRIC: float(requests), TOKENS_METRIC: load.kv_cache_usage * num_times}


def demand_of(reported: Mapping[str, Mapping[Any, float]], *, target_requests: float) -> float:
    """Return how many replicas a load fills, as a fraction.

    Args:
        reported: What ``load_metrics`` said, by name and then by replica.
        target_requests: Requests one replica should hold.
    """
    requests = sum(reported.get(REQUESTS_METRIC, {}).values())
    kv_cache_share = sum(reported.get(TOKENS_METRIC, {}).values())
    return max(requests / target_requests, kv_cache_share / TARGET_KV_CACHE_SHARE)


def num_replicas_for(demand: float, *, current: int, min_replicas: int, max_replicas: int) -> int:
    """Return the replicas that hold a load.

    Args:
        demand: See ``demand_of``.
        current: Replicas there are now.
        min_replicas: Never fewer.
        max_replicas: Never more.
    """
    wanted = math.ceil(demand)
    if wanted < current:
        wanted = math.ceil(demand * _MARGIN)
    return max(min_replicas, min(wanted, max_replicas))
