"""What one process of the server consists of, and the work that it does without being asked."""

from __future__ import annotations

import logging
import math
import random
import threading
import time
from dataclasses import asdict

from stun_server.binding.responder import BindingResponder, CannotListen
from stun_server.bodies import BodyPlaces
from stun_server.gate import Gate
from stun_server.logs import audit_logger, logger
from stun_server.metrics import Metrics
from stun_server.registry import Registry
from stun_server.settings import RegistrySettings
from stun_server.store import AuditEvent, Store, StoreUnavailable
from stun_server.waiting import ChangeWatch

ALIVE_INTERVAL = 1.0  # seconds between two signs of life in the store
LONGEST_SILENCE = 10.0  # seconds without one after which the server was away
THREADS_FOR_OTHERS = 32  # that no waiting request may take
AUDIT_KEPT = 90 * 86_400.0  # seconds
IDLE_CLUSTER_KEPT = 30 * 86_400.0  # seconds that a cluster's key outlives its instances
CLOSE_TIMEOUT = 1.0  # seconds


class Service:
    """Made before any fork, started after it; each part makes its connections by its first use."""

    def __init__(
        self, settings: RegistrySettings, store: Store, *, is_shared: bool = False
    ) -> None:
        self.settings = settings
        self.store = store
        self.metrics = Metrics(store, is_shared=is_shared)
        self.registry = Registry(store, settings, on_event=self._on_event)
        self.gate = Gate(store, settings, on_event=self._on_event)
        capacity = max(settings.threads - THREADS_FOR_OTHERS, settings.threads // 2)
        self.watch = ChangeWatch(store, capacity=capacity)
        self.bodies = BodyPlaces(max(1, settings.threads // 4))
        self.responder: BindingResponder | None = None
        self._told: dict[str, int] = {}
        self._resumed_at = -math.inf
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def is_draining(self) -> bool:
        """The process is about to end: load balancers shall send it nothing new."""
        return self._closing.is_set()

    @property
    def stun_port(self) -> int | None:
        """UDP port of the responder; None: there is none, or it has ended."""
        responder = self.responder
        return self.settings.udp_port if responder is not None and responder.is_alive else None

    def resume(self) -> None:
        """Says that the server lives; leases outlast a time in which it did not.

        StoreUnavailable: the store cannot be written.
        """
        ttl = self.settings.instance_timeout
        renewed = self.store.resume(ttl=ttl, silence=min(LONGEST_SILENCE, ttl / 2))
        self._resumed_at = time.monotonic()
        if renewed:
            logger.info("the server was away: leases go on", extra={"leases": renewed})

    def check_store(self) -> None:
        """Whether the store can be written; a look of the last seconds counts. StoreUnavailable."""
        if time.monotonic() - self._resumed_at > 2 * ALIVE_INTERVAL:
            self.resume()

    def start(self, *, with_binding: bool) -> None:
        """Starts the threads. CannotListen: the UDP port of the STUN responder is taken."""
        settings = self.settings
        if with_binding and settings.udp_port is not None:
            responder = BindingResponder(port=settings.udp_port, addresses=settings.udp_addresses)
            try:
                responder.start()
            except CannotListen as error:
                raise CannotListen(f"{error}: see STUN_UDP_PORT, STUN_UDP_HOST") from error
            self.responder = responder
        self._thread = threading.Thread(target=self._run, name="stun-server-care", daemon=True)
        self._thread.start()

    def drain(self) -> None:
        """Sends all who wait away. Safe in a signal's callback."""
        self._closing.set()
        self.watch.close()

    def close(self) -> None:
        """Ends the threads and the connections."""
        self.drain()
        if self.responder is not None:
            self.responder.close()
        if self._thread is not None:
            self._thread.join(CLOSE_TIMEOUT)
        self.watch.join()
        self.store.close()

    def _run(self) -> None:
        spread = random.Random().uniform(0.8, 1.0)  # so that the workers do not come together
        cleaned_at = time.monotonic()
        while not self._closing.wait(ALIVE_INTERVAL * spread):
            try:
                self.resume()
                self._count()
                if time.monotonic() - cleaned_at > self.settings.cleanup_interval * spread:
                    cleaned_at = time.monotonic()
                    self.clean()
            except StoreUnavailable as error:
                logger.error("! %s", error)
            except Exception:  # this thread must live
                logger.exception("! the server goes on")

    def clean(self) -> None:
        """Removes what is over. StoreUnavailable: not now."""
        self.registry.expire_all()
        now = time.time()
        self.store.prune_audit(before=now - AUDIT_KEPT)
        for cluster_id in self.store.forget_idle(before=now - IDLE_CLUSTER_KEPT):
            logger.info("an idle cluster is forgotten", extra={"cluster_id": cluster_id})

    def _count(self) -> None:
        self.metrics.waiting.set(self.watch.waiting)
        if self.responder is None:
            return
        for outcome, total in asdict(self.responder.stats()).items():
            grown = total - self._told.get(outcome, 0)
            self._told[outcome] = total
            if grown > 0:
                self.metrics.binding.labels(outcome).inc(grown)

    def _on_event(self, event: AuditEvent) -> None:
        self.metrics.events.labels(event.event).inc()
        level = logging.WARNING if event.event == "conflict" else logging.INFO
        audit_logger.log(
            level,
            event.event,
            extra={
                "cluster_id": event.cluster_id,
                "instance_id": event.instance_id,
                "source": event.source,
                "key_fingerprint": event.key_fingerprint,
                "detail": event.detail,
            },
        )
