"""`Cluster`: this instance as a member of its cluster; what the layers above call.

It puts membership, state, jobs and collectives together; it opens no socket and encodes nothing
itself. A cluster of one has no transport, starts no thread, and its collectives return their input.

How threads meet here: callers come from any thread; the transport's control thread calls
`_on_peer_event`; the codec threads run codec work. The state machine, membership, jobs and budget
have a lock of their own each, held for a moment, and no handle completes while one is held.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Collection, Iterator
from typing import Any

import torch

from comfy_cluster.cluster.budget import ByteBudget
from comfy_cluster.cluster.choice import CodecChooser
from comfy_cluster.cluster.codec_pool import CodecPool
from comfy_cluster.cluster.collectives import Collectives, Kind, required
from comfy_cluster.cluster.forecast import CodecSpeeds
from comfy_cluster.cluster.info import ROUNDING_TEXT, ClusterInfo, PeerSummary
from comfy_cluster.cluster.jobs import Jobs
from comfy_cluster.cluster.keys import CollectiveKey
from comfy_cluster.cluster.links import Ways
from comfy_cluster.cluster.membership import Membership
from comfy_cluster.cluster.payloads import Payloads
from comfy_cluster.cluster.ports import MessageListener, PeerEvent, PeerListener, Transport
from comfy_cluster.cluster.state import InstanceInput, InstanceState, StateMachine
from comfy_cluster.cluster.value_transfers import ValueTransfers
from comfy_cluster.config import LEADER, ClusterConfig, ImagePrecision
from comfy_cluster.discovery.base import Address, Discovery
from comfy_cluster.errors import (
    ClusterError,
    DiscoveryError,
    LocalProtocolError,
    TransferCancelled,
    TransferError,
    TransferTimeout,
)
from comfy_cluster.protocol.events import PeerConnected, PeerLost, StrangerHeard
from comfy_cluster.transport.handle import Handle
from comfy_cluster.wire import MessageType

logger = logging.getLogger("comfy_cluster.cluster")

LARGEST_CODEC_THREAD_COUNT = 4  # they keep up with 10 Gbit/s; ComfyUI needs the other cores
CLOSE_TIMEOUT = 2.0  # seconds in all; what an ending process may be kept waiting
# Two instances that lose a peer heard from it last one heartbeat apart at most; one more to spare.
LOSS_SKEW_HEARTBEATS = 2


class Cluster:
    """One instance and its collectives. Thread-safe; also a context manager (start, close)."""

    def __init__(
        self,
        config: ClusterConfig,
        transport: Transport | None = None,
        discovery: Discovery | None = None,
        *,
        engine_name: str = "none",
    ) -> None:
        """`transport` and `discovery` are needed by, and only by, clusters of two and more."""
        if not config.is_single and (transport is None or discovery is None):
            raise LocalProtocolError("a cluster of several instances needs transport and discovery")
        self.config = config
        self._engine_name = engine_name
        self._transport = transport
        self._discovery = discovery
        self._state = StateMachine()
        self._membership = Membership(config)
        self._ready: Handle[None] = Handle(self._membership.ready.description)
        self._ended: Handle[None] = Handle("this instance in its cluster")
        self._jobs = Jobs(grace_seconds=LOSS_SKEW_HEARTBEATS * config.heartbeat_interval)
        self._running_jobs: set[str] = set()
        self._running_lock = threading.Lock()
        self._is_closed = False
        self._failure: ClusterError | None = None  # DiscoveryError, or TransferError
        thread_count = min(LARGEST_CODEC_THREAD_COUNT, os.cpu_count() or 1)
        self._pool = CodecPool(thread_count)
        self._chooser = CodecChooser(config, CodecSpeeds(), thread_count=thread_count)
        self._collectives = None if transport is None else self._make_collectives(transport)

    def _make_collectives(self, transport: Transport) -> Collectives:
        # One half of the budget is for payloads going out, the other for those coming in: two
        # instances that wait for each other's memory would wait for ever.
        budget = ByteBudget(self.config.memory_budget // 2)
        ways = Ways(self.config, self._membership, transport)
        payloads = Payloads(
            self.config,
            transport,
            executor=self._pool,
            budget=budget,
            chooser=self._chooser,
            link_to=ways.link_to,
            plan=ways.plan,
        )
        return Collectives(
            self.config.instance_index,
            self.config.instance_count,
            payloads=payloads,
            jobs=self._jobs,
            executor=self._pool,
            is_connected=self._membership.is_connected,
        )

    # Life.

    def start(self) -> None:
        """Starts transport and discovery, and returns at once: see `wait_until_ready`.

        Raises what keeps it from starting (such as an address that is in use); then it is closed.
        """
        self._state.handle(InstanceInput.STARTED)
        self._membership.ready.add_done_callback(self._on_ready)
        if self._transport is None or self._discovery is None:
            return
        if self.config.image_precision is ImagePrecision.UINT8:
            logger.info("= %s", ROUNDING_TEXT)
        try:
            self._transport.add_peer_listener(self._on_peer_event)
            self._transport.ended.add_done_callback(self._on_transport_ended)
            self._transport.start()
            self._discovery.start(self._on_member, self._on_discovery_failed)
        except BaseException:
            self._state.handle(InstanceInput.FAILED)
            self.close()
            raise

    def close(self) -> None:
        """Leaves the cluster within two seconds; every waiting handle fails. Twice is fine."""
        deadline = time.monotonic() + CLOSE_TIMEOUT
        self._is_closed = True
        reason = "the cluster was closed on this instance"
        self._jobs.close(reason)
        self._end(TransferCancelled(reason))
        self._pool.stop()  # its threads end while the transport does, and so do the discovery's
        if self._discovery is not None:
            self._discovery.stop_soon()
        if self._transport is not None:
            self._transport.close()  # the peers are told first, whatever a server does
        if self._discovery is not None:
            self._discovery.close()
        self._pool.close(max(0.0, deadline - time.monotonic()))

    def __enter__(self) -> Cluster:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def instance_index(self) -> int:
        return self.config.instance_index

    @property
    def instance_count(self) -> int:
        return self.config.instance_count

    @property
    def is_leader(self) -> bool:
        return self.config.is_leader

    @property
    def state(self) -> InstanceState:
        """Where this instance is in its life; ERROR once its transport has failed."""
        if self._transport is not None and self._transport.failure is not None:
            return self._state.handle(InstanceInput.FAILED)
        return self._state.state

    @property
    def ready(self) -> Handle[None]:
        """Done once MIN_INSTANCES are connected; fails with what ends this instance before that."""
        return self._ready

    @property
    def ended(self) -> Handle[None]:
        """Fails with what ends this instance: TransferCancelled (it was closed), TransferError (its
        transport failed), or DiscoveryError (it cannot be part of the cluster). No result."""
        return self._ended

    def wait_until_ready(self, timeout: float | None = None) -> None:
        """Blocks until MIN_INSTANCES are connected, up to `timeout` seconds.

        DiscoveryError: they are not; the text names those that are missing. Fails like `ended` too.
        """
        if self._failure is not None:
            raise self._failure
        try:
            self.ready.result(timeout)
        except TransferTimeout:
            troubles = self._discovery.troubles() if self._discovery is not None else {}
            waited = f"Not ready after {timeout:g} s. " if timeout else "Not ready. "
            raise DiscoveryError(waited + self._membership.missing_text(troubles)) from None

    def declare_ready(self) -> None:
        """Enough are connected: the leader says so by giving work, and it is what counts.

        A follower may still wait for another one, which may never come.
        """
        self._membership.ready.set_result(None)

    # Jobs.

    @contextlib.contextmanager
    def job(self, job_id: str) -> Iterator[None]:
        """While it is open the instance is EXECUTING; at its end, what is left of the job ends.

        A job id is used once in the life of a cluster. LocalProtocolError: not ready, or failed.
        DiscoveryError: this instance cannot be part of the cluster. TransferError: its transport
        failed.
        """
        self._begin_job(job_id)
        try:
            yield
        finally:
            try:
                self.end_job(job_id)
            finally:
                self._leave_job(job_id)

    def end_job(self, job_id: str) -> None:
        """Cancels what is left of a job here, and drops what peers still send for it."""
        self._jobs.end(job_id)
        if self._transport is not None and not self._is_closed:
            self._transport.end_job(job_id)

    def _begin_job(self, job_id: str) -> None:
        if self._failure is not None:
            raise self._failure
        with self._running_lock:
            if job_id in self._running_jobs:
                raise LocalProtocolError(f"job {job_id!r} is under way on this instance already")
            if not self._running_jobs:
                self._state.handle(InstanceInput.JOB_BEGAN)
            self._running_jobs.add(job_id)
        self._jobs.begin(job_id)

    def _leave_job(self, job_id: str) -> None:
        with self._running_lock:
            self._running_jobs.discard(job_id)
            if not self._running_jobs:
                self._state.handle(InstanceInput.JOB_ENDED)

    # Collectives.

    def broadcast(
        self,
        key: CollectiveKey,
        tensor: torch.Tensor | None = None,
        *,
        source: int = LEADER,
        is_image: bool = False,
    ) -> Handle[torch.Tensor]:
        """The tensor of instance `source`, on every instance.

        The others pass None; what they pass is not looked at. At the source the handle is done when
        every peer has the tensor, which must not be changed in place before. `is_image`: it is an
        image or mask, and may travel as 8-bit levels where IMAGE_PRECISION allows it.

        Here and below, the handle fails with PeerLost, TransferTimeout, CorruptPayload or
        UnsupportedTensor, whose text names the collective and the instance.
        """
        collectives = self._open_collectives()
        if collectives is None:
            return Handle.completed(required(tensor, "a broadcast"))
        return collectives.broadcast(key, tensor, source=source, is_image=is_image)

    def fan_out(
        self, key: CollectiveKey, batch: torch.Tensor | None = None, *, is_image: bool = False
    ) -> Handle[torch.Tensor]:
        """This instance's slice of the leader's batch, cut evenly along dim 0.

        Followers pass None. An instance without items gets shape [0, ...]. The leader's slice is a
        view of `batch`, and its handle is done when every follower that gets items has its slice;
        empty slices are sent, but the leader waits for none of them.
        """
        collectives = self._open_collectives()
        if collectives is None:
            return Handle.completed(required(batch, "a fan-out"))
        return collectives.fan_out(key, batch, is_image=is_image)

    def fan_in(
        self,
        key: CollectiveKey,
        part: torch.Tensor | None,
        *,
        sources: Collection[int] | None = None,
        is_image: bool = False,
    ) -> Handle[torch.Tensor]:
        """On the leader all parts joined along dim 0, in instance order; elsewhere the own part.

        `sources`: the instances whose parts are joined, and nobody else's is waited for; without it
        all are. After a fan-out the leader passes those that got items, so that it waits for no
        other: `batches.instances_with_items(item_count, instance_count)`. The others may call this
        all the same: what the leader does not ask for ends with its job. A follower that passes
        `sources` without itself sends nothing. Its handle is done when the leader has its part.
        """
        collectives = self._open_collectives()
        if collectives is None:
            return Handle.completed(required(part, "a fan-in"))
        return collectives.fan_in(key, part, sources=sources, is_image=is_image)

    def all_gather(
        self, key: CollectiveKey, tensor: torch.Tensor, *, is_image: bool = False
    ) -> Handle[list[torch.Tensor]]:
        """On every instance a list with each instance's tensor, in instance order.

        Shapes and dtypes may differ. Done when all are here, and this one's is everywhere.
        """
        collectives = self._open_collectives()
        if collectives is None:
            return Handle.completed([required(tensor, "an all-gather")])
        return collectives.all_gather(key, tensor, is_image=is_image)

    def send_value(
        self,
        key: CollectiveKey,
        value: Any,
        peers: Collection[int],
        *,
        kind: Kind,
        is_image: bool = False,
        siblings: int = 1,
    ) -> Handle[None]:
        """A value of ComfyUI's links (`values.pack`) to some peers; done when each has it.

        Its tensors must not be changed in place before. `siblings`: how many such calls are made at
        once, this one too. UnsupportedTensor: the value cannot travel.
        """
        return self._values().send(
            key, value, peers, kind=kind, is_image=is_image, siblings=siblings
        )

    def receive_value(self, key: CollectiveKey, source: int, *, kind: Kind) -> Handle[Any]:
        """What instance `source` sends by `send_value` under that key."""
        return self._values().receive(key, source, kind=kind)

    def allocate(self, size: int) -> memoryview:
        """Writable memory of `size` bytes, touched before if there is such: see `MemoryPool`.

        Raises MemoryError.
        """
        if self._transport is None:
            return memoryview(bytearray(size))
        return self._transport.allocate(size)

    def _values(self) -> ValueTransfers:
        collectives = self._open_collectives()
        if collectives is None:
            raise LocalProtocolError("a cluster of one has nobody to send values to")
        return ValueTransfers(collectives, self._pool)

    def _open_collectives(self) -> Collectives | None:
        """None: a cluster of one. LocalProtocolError: not started, or closed."""
        if self._collectives is not None and self.state is InstanceState.INITIALIZE:
            raise LocalProtocolError("the cluster was not started: call start() first")
        if self._is_closed:
            raise LocalProtocolError("the cluster is closed on this instance")
        return self._collectives

    # Messages and peers, for the layers above.

    def send_message(
        self, peer: int, message_type: MessageType, payload: bytes, *, require_ack: bool = True
    ) -> Handle[None]:
        """Done when the peer acknowledged it. Fails with TransferTimeout or PeerLost."""
        if self._transport is None:
            raise LocalProtocolError("a cluster of one has nobody to send messages to")
        return self._transport.send_message(peer, message_type, payload, require_ack=require_ack)

    def add_message_listener(self, message_type: MessageType, fn: MessageListener) -> None:
        """`fn(peer, payload)` on the control thread; it must not block, nor raise."""
        if self._transport is not None:
            self._transport.add_message_listener(message_type, fn)

    def add_peer_listener(self, fn: PeerListener) -> None:
        """`fn(event)` on the control thread; it must not block, nor raise."""
        if self._transport is not None:
            self._transport.add_peer_listener(fn)

    @property
    def connected_peers(self) -> list[int]:
        """Instances other than this one that are connected at this moment, in order."""
        others = (each for each in range(self.instance_count) if each != self.instance_index)
        return [each for each in others if self._membership.is_connected(each)]

    # Views.

    def info(self) -> ClusterInfo:
        """What a user is shown: settings, state, peers, counters."""
        transport = self._transport
        config = self.config
        return ClusterInfo(
            instance_index=config.instance_index,
            instance_count=config.instance_count,
            min_instances=config.min_instances,
            connected_count=self._membership.connected_count,
            role=config.role,
            state=self.state,
            registration_mode=config.registration_mode,
            cluster_id=config.cluster_id,
            engine=self._engine_name,
            peers=self._peer_summaries(),
            stats={} if transport is None else {**transport.stats(), **self._chooser.stats()},
            image_precision=config.image_precision,
            failure=str(self._failure or (transport and transport.failure) or ""),
        )

    def _peer_summaries(self) -> tuple[PeerSummary, ...]:
        if self._transport is None or self._discovery is None:
            return ()
        troubles = self._membership.troubles(self._discovery.troubles())
        patience = self.config.instance_timeout / 2
        return tuple(
            PeerSummary.of(each, trouble=troubles.get(each.index, ""), patience=patience)
            for each in self._transport.peers()
        )

    # Called by the layers below.

    def _on_member(self, peer: int, address: Address) -> None:
        self._membership.set_address(peer, address)
        if self._transport is not None:
            self._transport.add_member(peer, address)

    def _on_peer_event(self, event: PeerEvent) -> None:
        """On the control thread: nothing here blocks."""
        self._membership.handle_event(event)
        if isinstance(event, PeerLost):
            self._jobs.on_peer_lost(event.peer, event.reason)
            self._wait_again()
        if self._discovery is None:
            return
        if isinstance(event, PeerConnected):
            self._discovery.on_peer_connected(event.peer)
        elif isinstance(event, PeerLost):
            self._discovery.on_peer_lost(event.peer)
        elif isinstance(event, StrangerHeard):
            self._discovery.on_heard(event.peer, event.address, is_observer=event.is_observer)

    def _wait_again(self) -> None:
        """Once the leader is lost, a follower waits for it as it did at first."""
        ready = self._membership.ready
        with self._running_lock:
            is_at_work = self._state.state in (InstanceState.IDLE, InstanceState.EXECUTING)
            if ready.done() or not is_at_work or self._ended.done():
                return
            self._ready = Handle(ready.description)
            self._state.handle(InstanceInput.LEADER_LOST)
        ready.add_done_callback(self._on_ready)

    def _on_discovery_failed(self, error: DiscoveryError) -> None:
        """This instance cannot be part of the cluster: it leaves, and says why when it is asked."""
        logger.error("! %s", error)
        self._failure = error
        self._state.handle(InstanceInput.FAILED)
        self._jobs.close(str(error))
        self._end(error)
        if self._transport is not None:
            self._transport.close()

    def _on_transport_ended(self, ended: Handle[None]) -> None:
        """On the thread that failed; or it was closed, perhaps by nobody but Python's exit."""
        error = ended.exception()
        assert error is not None
        if not isinstance(error, TransferCancelled):
            self._state.handle(InstanceInput.FAILED)
            error = TransferError(f"the transport of this instance failed: {error!r}")
            self._failure = error
        self._end(error)

    def _end(self, error: BaseException) -> None:
        """Nobody shall wait for this instance any more."""
        self._ended.set_exception(error)  # first: from now on `_wait_again` renews nothing
        self._membership.ready.set_exception(error)
        self._ready.set_exception(error)

    def _on_ready(self, ready: Handle[None]) -> None:
        """First the state, then whoever waits: who was woken begins a job at once."""
        error = ready.exception()
        if error is None:
            with self._running_lock:
                self._state.handle(InstanceInput.ENOUGH_CONNECTED)
                if self._running_jobs:  # of before the leader was lost
                    self._state.handle(InstanceInput.JOB_BEGAN)
            self._ready.set_result(None)
        else:
            self._ready.set_exception(error)
