"""What the data plane counts. Lists and floats on the hot path; Prometheus objects on scrape."""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from maas.gateway.relay.access import AccessRecord
from maas.gateway.relay.admission import Admission
from maas.gateway.relay.routing import Router
from maas.gateway.relay.snapshot import Snapshot
from maas.ledger.spender import Spender

# Seconds.
TTFT_BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
CHUNK_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
DURATION_BOUNDS = (0.01, 0.05, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


class Histogram:
    """Counts by bucket: one bisect and two additions an observation."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, seconds: float) -> None:
        """Count one observation."""
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.total += seconds

    def observe_gaps(self, moments: list[float]) -> None:
        """Count the times between one moment and the next; keeps the last moment, for the next."""
        for earlier, later in pairwise(moments):
            self.observe(later - earlier)
        del moments[:-1]

    def buckets(self) -> list[tuple[str, float]]:
        """Return cumulative buckets as Prometheus wants them."""
        names = [*(str(bound) for bound in self.bounds), "+Inf"]
        running, result = 0, list[tuple[str, float]]()
        for name, count in zip(names, self.counts, strict=True):
            running += count
            result.append((name, running))
        return result


@dataclass
class Latencies:
    """Latencies of one model on one replica."""

    ttft: Histogram = field(default_factory=lambda: Histogram(TTFT_BOUNDS))
    chunk: Histogram = field(default_factory=lambda: Histogram(CHUNK_BOUNDS))
    duration: Histogram = field(default_factory=lambda: Histogram(DURATION_BOUNDS))


@dataclass
class Meter:
    """Everything counted, by label values."""

    requests: dict[tuple[str, str, str, str], int] = field(
        default_factory=dict[tuple[str, str, str, str], int]
    )
    tokens: dict[tuple[str, str, str], int] = field(default_factory=dict[tuple[str, str, str], int])
    latencies: dict[tuple[str, str], Latencies] = field(
        default_factory=dict[tuple[str, str], Latencies]
    )
    num_retries: int = 0
    num_aborts: int = 0

    def latencies_of(self, model: str, replica_id: str) -> Latencies:
        """Return the latencies of a model on a replica."""
        key = (model, replica_id)
        found = self.latencies.get(key)
        if found is None:
            found = self.latencies[key] = Latencies()
        return found

    def count_request(self, record: AccessRecord) -> None:
        """Count a request that was answered."""
        key = (record.model, record.replica, record.route, str(record.status))
        self.requests[key] = self.requests.get(key, 0) + 1

    def count_tokens(self, model: str, replica_id: str, kind: str, num_tokens: int) -> None:
        """Count tokens of a kind: ``prompt``, ``cached`` or ``completion``."""
        key = (model, replica_id, kind)
        self.tokens[key] = self.tokens.get(key, 0) + num_tokens


class GatewayCollector(Collector):
    """Turns the counts into Prometheus metrics when they are asked for."""

    def __init__(self, meter: Meter, router: Router, snapshot: Callable[[], Snapshot]) -> None:
        self._meter = meter
        self._router = router
        self._snapshot = snapshot

    def collect(self) -> Iterable[Metric]:
        """Yield every metric."""
        yield from self._counters()
        yield from self._histograms()
        yield from self._gauges()

    def _counters(self) -> Iterator[Metric]:
        requests = CounterMetricFamily(
            "maas_requests", "Requests answered", labels=["model", "replica", "route", "status"]
        )
        for labels, count in self._meter.requests.items():
            requests.add_metric(list(labels), count)
        tokens = CounterMetricFamily(
            "maas_tokens", "Tokens served", labels=["model", "replica", "kind"]
        )
        for labels, count in self._meter.tokens.items():
            tokens.add_metric(list(labels), count)
        yield requests
        yield tokens
        yield CounterMetricFamily(
            "maas_retries", "Requests sent to a second replica", value=self._meter.num_retries
        )
        yield CounterMetricFamily(
            "maas_client_aborts", "Requests whose client left", value=self._meter.num_aborts
        )

    def _histograms(self) -> Iterator[Metric]:
        labels = ["model", "replica"]
        ttft = HistogramMetricFamily(
            "maas_time_to_first_token_seconds", "Request to first byte", labels=labels
        )
        chunk = HistogramMetricFamily(
            "maas_inter_token_seconds", "Time between two chunks of a stream", labels=labels
        )
        duration = HistogramMetricFamily(
            "maas_request_duration_seconds", "Request to last byte", labels=labels
        )
        for key, found in self._meter.latencies.items():
            for family, histogram in (
                (ttft, found.ttft),
                (chunk, found.chunk),
                (duration, found.duration),
            ):
                family.add_metric(list(key), histogram.buckets(), sum_value=histogram.total)
        yield from (ttft, chunk, duration)

    def _gauges(self) -> Iterator[Metric]:
        labels = ["model", "replica"]
        gauges = {
            name: GaugeMetricFamily(f"maas_replica_{name}", text, labels=labels)
            for name, text in (
                ("running", "Requests the engine computes"),
                ("waiting", "Requests in the engine's queue"),
                ("kv_cache_usage", "Share of the KV cache in use"),
                ("memory_bytes", "Memory of the engine's processes"),
                ("outstanding_tokens", "Tokens this gateway has sent and not seen finished"),
            )
        }
        for entry in self._snapshot().models.values():
            if entry.name != entry.root:
                continue
            for target in entry.targets:
                replica = target.replica
                key = [entry.name, replica.id]
                gauges["running"].add_metric(key, replica.num_running)
                gauges["waiting"].add_metric(key, replica.num_waiting)
                gauges["kv_cache_usage"].add_metric(key, replica.kv_cache_usage)
                gauges["memory_bytes"].add_metric(key, replica.memory_bytes)
                outstanding = self._router.outstanding_tokens.get(replica.id, 0)
                gauges["outstanding_tokens"].add_metric(key, outstanding)
        yield from gauges.values()


class LedgerCollector(Collector):
    """What waits at this gateway: requests for their turn, charges for the journal."""

    def __init__(self, admission: Admission, spender: Spender) -> None:
        self._admission = admission
        self._spender = spender

    def collect(self) -> Iterable[Metric]:
        """Yield every metric."""
        waiting = GaugeMetricFamily(
            "maas_queued_requests", "Requests that wait for their turn", labels=["model"]
        )
        for model, count in self._admission.num_waiting().items():
            waiting.add_metric([model], count)
        yield waiting
        yield GaugeMetricFamily(
            "maas_open_reservations", "Admitted and not settled", value=self._spender.num_open
        )
        yield GaugeMetricFamily(
            "maas_unposted_charges",
            "Charges in the log and not yet in the journal",
            value=self._spender.num_unposted,
        )
