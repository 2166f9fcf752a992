"""A discovery by rendezvous servers and what it reports, for tests of it."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from comfy_cluster.config import ClusterConfig, RegistrationMode, Role
from comfy_cluster.discovery import Address
from comfy_cluster.discovery.stun import StunDiscovery
from comfy_cluster.errors import DiscoveryError
from tests.unit.discovery.rendezvous import Rendezvous

WAIT = 20.0  # seconds; a bound for a broken build, never waited for in a good one


class Looking:
    """A discovery and what it reports."""

    def __init__(
        self,
        *urls: str,
        index: int = 1,
        count: int = 3,
        key: str = "k" * 32,
        is_observer: bool = False,
    ) -> None:
        config = ClusterConfig(
            instance_count=count,
            instance_index=index,
            role=Role.FOLLOWER if index else Role.LEADER,
            registration_mode=RegistrationMode.STUN,
            stun_servers=urls,
            cluster_id="c",
            key=key,
            direct_listen_port=9000 + index,
        )
        self.members: queue.Queue[tuple[int, Address]] = queue.Queue()
        self.failures: queue.Queue[DiscoveryError] = queue.Queue()
        self.discovery = StunDiscovery(config, is_observer=is_observer)

    def start(self) -> None:
        self.discovery.start(
            lambda peer, address: self.members.put((peer, address)), self.failures.put
        )

    def next_member(self) -> tuple[int, Address]:
        return self.members.get(timeout=WAIT)


@contextmanager
def looking(*urls: str, index: int = 1, count: int = 3, key: str = "k" * 32) -> Iterator[Looking]:
    made = Looking(*urls, index=index, count=count, key=key)
    made.start()
    try:
        yield made
    finally:
        made.discovery.close()


def trouble_of(one: Looking, peer: int) -> str:
    return one.discovery.troubles().get(peer, "")


def wait_until(condition: Callable[[], bool], *, news: Rendezvous | None = None) -> None:
    """`news`: a server that gets some meanwhile; one that holds the question answers it then."""
    deadline = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < deadline
        if news is not None:
            news.put(6, address=f"10.0.1.{len(news.asked) % 250}")
        time.sleep(0.005)
