"""Shared memory as the protocol core and the control thread see it: the parts put together.

Offers `protocol.SharedMemoryPort`, and one descriptor and one timer for the control thread to wait
for. Control thread only, but for `peers` and what says otherwise. Used by `assembly.py`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from comfy_cluster.protocol import PeerProof, SharedEvent
from comfy_cluster.transport.shared_memory.incoming import SharedReceiver
from comfy_cluster.transport.shared_memory.link import Link, LinkLost, RuleBroken, close_fd
from comfy_cluster.transport.shared_memory.outgoing import SharedSender
from comfy_cluster.transport.shared_memory.poller import Poller
from comfy_cluster.transport.shared_memory.records import (
    Dropped,
    Fate,
    Filled,
    GivenUp,
    Record,
    Released,
)
from comfy_cluster.transport.shared_memory.rendezvous import Rendezvous
from comfy_cluster.transport.shared_memory.segments import IDLE_SHARE
from comfy_cluster.transport.shared_memory.stats import SharedMemoryStats
from comfy_cluster.transport.workers import WorkerPool

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from comfy_cluster.transport.control import Command

logger = logging.getLogger("comfy_cluster.transport")


class SharedMemoryCarrier:
    """The links to the peers of this machine, and what travels through memory with them."""

    def __init__(
        self,
        instance_index: int,
        boot_id: int,
        *,
        memory_budget: int,
        workers: WorkerPool,
        post: Callable[[Command], None],
    ) -> None:
        """`post` hands a command to the control thread. OSError: there is no listener to be had."""
        self.stats = SharedMemoryStats()
        self.peers: frozenset[int] = frozenset()
        """The peers with a link; may be read by any thread."""
        self._links: dict[int, Link] = {}
        self._broken: dict[int, LinkLost] = {}
        self._rendezvous = Rendezvous(
            instance_index, boot_id, stats=self.stats, on_link=self._on_link
        )
        self._poller = Poller(self._rendezvous.fileno())
        self._sender = SharedSender(
            idle_limit=memory_budget // 2 // IDLE_SHARE,
            links=self._links,
            workers=workers,
            post=post,
            stats=self.stats,
            on_broken=self._broken.__setitem__,
        )
        self._receiver = SharedReceiver(
            workers=workers, post=post, stats=self.stats, tell=self._tell
        )

    # For the control thread

    def fileno(self) -> int:
        """Readable when `handle_ready` has something to do."""
        return self._poller.fileno()

    def next_timer(self) -> float | None:
        if self._broken:
            return 0.0
        times = (self._rendezvous.next_timer(), self._sender.pool.next_timer())
        return min((each for each in times if each is not None), default=None)

    def handle_ready(self, now: float) -> None:
        """Acts on what came over all sockets."""
        has_callers, ready = self._poller.ready()
        if has_callers:
            self._rendezvous.accept(now)
        for link in ready:
            self._handle(link, now)

    def handle_timers(self, now: float) -> None:
        """Acts on timers that are due, and on links that are lost; after `handle_ready`."""
        self._rendezvous.handle_timers(now)
        self._sender.pool.trim(now)
        while self._broken:
            self._on_lost(*self._broken.popitem(), now=now)

    def watch(self) -> None:
        """To be called before waiting: links come and go with what the core does too."""
        self._poller.watch(self._rendezvous.links())
        self._poller.watch(self._links.values())

    def _handle(self, link: Link, now: float) -> None:
        if link.is_closed:
            return
        peer = next((peer for peer, each in self._links.items() if each is link), None)
        if peer is None:
            self._rendezvous.handle(link)
            return
        received, lost = link.receive()
        for record, fd in received:
            try:
                self._on_record(peer, record, fd, now)
            except LinkLost as error:
                lost = error
            finally:
                close_fd(fd)
        try:
            link.flush()
        except LinkLost as error:
            lost = lost or error
        if lost is not None:
            self._broken[peer] = lost

    def _on_record(self, peer: int, record: Record, fd: int | None, now: float) -> None:
        if isinstance(record, Filled):
            self._receiver.on_filled(peer, record, fd)
        elif isinstance(record, GivenUp):
            self._receiver.on_given_up(peer, record)
        elif isinstance(record, Dropped):
            self._receiver.on_dropped(peer, record.segment_id)
        elif isinstance(record, Released) and record.fate in list(Fate):
            self._sender.on_released(peer, record, now)
        else:
            raise RuleBroken(f"{record} on a link that stands")

    def close(self) -> None:
        """Ends all links; what was received stays where it is. Twice is fine."""
        for peer in list(self._links):
            self._links.pop(peer).close()
        self.peers = frozenset()
        self._rendezvous.close()
        self._poller.close()
        self._receiver.close_all()

    def free_memory(self) -> None:
        """To be called after `close`, when the workers have ended: none may be copying."""
        self._sender.close_all()
        self._receiver.free_memory()

    # Links

    def _on_link(self, peer: int, link: Link) -> None:
        self._links[peer] = link
        self.peers = frozenset(self._links)
        self.stats.links_made += 1
        self._receiver.on_link(peer)
        logger.info("= %d shares memory with this instance", peer)

    def _on_lost(self, peer: int, error: LinkLost, *, now: float) -> None:
        link = self._links.pop(peer, None)
        if link is None:
            return
        link.close()
        self.peers = frozenset(self._links)
        self.stats.links_lost += 1
        self.stats.refused_record += isinstance(error, RuleBroken)
        logger.info("= %d its payloads go over UDP: %s", peer, error)
        self._sender.on_lost(peer, now)
        self._receiver.on_lost(peer, str(error))

    def _tell(self, peer: int, record: Record) -> None:
        link = self._links.get(peer)
        if link is None:
            return
        try:
            link.send(record)
        except LinkLost as error:
            self._broken[peer] = error

    # For the protocol core

    def connect_peer(self, peer: int, proof: PeerProof, now: float) -> None:
        self._rendezvous.connect_peer(peer, proof, now)

    def disconnect_peer(self, peer: int) -> None:
        self._rendezvous.disconnect_peer(peer)
        self._broken.pop(peer, None)
        self._on_lost(peer, LinkLost("the connection is over"), now=time.monotonic())
        self._sender.bytes_sent.pop(peer, None)
        self._receiver.bytes_received.pop(peer, None)

    def is_shared_with(self, peer: int) -> bool:
        return peer in self._links

    def open_outgoing(self, peer: int, buffer_id: int, prefix: bytes, body: Buffer) -> None:
        self._sender.open(peer, buffer_id, prefix, body)

    def send(self, buffer_id: int) -> None:
        self._sender.send(buffer_id, time.monotonic())

    def close_outgoing(self, buffer_id: int) -> None:
        self._sender.close(buffer_id, time.monotonic())

    def open_incoming(self, peer: int, buffer_id: int, size: int) -> None:
        self._receiver.open(peer, buffer_id, size)

    def close_incoming(self, buffer_id: int) -> None:
        self._receiver.close(buffer_id)

    def take_events(self) -> Sequence[SharedEvent]:
        return self._receiver.take_events()

    # Numbers

    def bytes_sent(self, peer: int) -> int:
        return self._sender.bytes_sent.get(peer, 0)

    def bytes_received(self, peer: int) -> int:
        return self._receiver.bytes_received.get(peer, 0)
