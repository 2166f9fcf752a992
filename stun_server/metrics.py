"""What Prometheus is told. Several workers share it through files, by prometheus_client's own way:
the folder in PROMETHEUS_MULTIPROC_DIR, which `gunicorn_conf.py` sets before anything is imported.

No cluster's name is in it: whoever may read the metrics learns of no cluster.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector

from stun_server.store import Store, StoreUnavailable

TRIES = 10  # of reading the files of all workers
TRY_INTERVAL = 0.02  # seconds
_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """Those of one application. `is_shared`: there are other worker processes."""

    def __init__(self, store: Store, *, is_shared: bool) -> None:
        self._store = store
        self._is_shared = is_shared
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "stun_http_requests",
            "HTTP requests by route, method and status",
            ("route", "method", "status"),
            registry=self._registry,
        )
        self.seconds = Histogram(
            "stun_http_request_seconds",
            "Seconds until the answer, those of waiting for changes included",
            ("route",),
            buckets=_BUCKETS,
            registry=self._registry,
        )
        self.events = Counter(
            "stun_registry_events",
            "Registrations, replacements, removals, expiries, conflicts and new keys",
            ("event",),
            registry=self._registry,
        )
        self.refused_keys = Counter(
            "stun_refused_keys",
            "Requests with a wrong key, or from a source with too many of them",
            registry=self._registry,
        )
        self.waiting = Gauge(
            "stun_waiting_requests",
            "Requests that wait for a change",
            multiprocess_mode="livesum",
            registry=self._registry,
        )
        self.binding = Counter(
            "stun_binding_packets",
            "Packets at the STUN port, by what became of them",
            ("outcome",),
            registry=self._registry,
        )

    def exposition(self) -> bytes:
        """All of it in Prometheus' text format."""
        totals = CollectorRegistry()
        totals.register(_Totals(self._store))
        return self._counted() + generate_latest(totals)

    def _counted(self) -> bytes:
        if not self._is_shared:
            return generate_latest(self._registry)
        for _ in range(TRIES):
            try:
                registry = CollectorRegistry()
                MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
                return generate_latest(registry)
            except (struct.error, OSError, ValueError):
                # A worker that starts or ends is about to write its file, or has removed it.
                time.sleep(TRY_INTERVAL)
        return b"# the files of the workers cannot be read now\n"


class _Totals:
    """Gauges of what the store holds, read when they are asked for."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def collect(self) -> Iterator[Metric]:
        try:
            totals = self._store.totals()
        except StoreUnavailable:
            yield GaugeMetricFamily("stun_store_up", "Whether the store answers", value=0)
            return
        yield GaugeMetricFamily("stun_store_up", "Whether the store answers", value=1)
        yield GaugeMetricFamily("stun_clusters", "Clusters with a key", value=totals.clusters)
        yield GaugeMetricFamily("stun_instances", "Registered instances", value=totals.leases)
