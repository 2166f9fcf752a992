"""A transport in memory: several clusters of one process, joined by a network of Python objects.

`FakeNetwork` delivers payloads on a thread of its own, each after a random delay, so that they
arrive in another order than they were sent. It can hold everything back, lose an instance, and it
counts how many bytes of encoded copies are on their way.
"""

from __future__ import annotations

import heapq
import itertools
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType

from comfy_cluster import errors
from comfy_cluster.cluster import Cluster
from comfy_cluster.cluster.ports import MessageListener, PeerEvent, PeerListener
from comfy_cluster.codec.image_codecs import available_codecs
from comfy_cluster.codec.payload import EncodedPayload
from comfy_cluster.config import ClusterConfig
from comfy_cluster.discovery.base import Address, FailureListener, MemberListener
from comfy_cluster.protocol.events import PeerConnected, PeerLost
from comfy_cluster.transport.handle import Handle
from comfy_cluster.transport.memory import ReceivedBuffer
from comfy_cluster.transport.peer_info import PeerInfo
from comfy_cluster.wire import MessageType, TransferKey

LARGEST_DELAY = 0.003  # seconds


@dataclass(order=True)
class Parcel:
    """One payload on its way."""

    due_at: float
    number: int
    receiver: int = field(compare=False)
    key: TransferKey = field(compare=False)
    payload: EncodedPayload = field(compare=False)
    handle: Handle[None] = field(compare=False)


class FakeNetwork:
    """Joins `FakeTransport`s. A context manager: its thread ends with it."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.transports: dict[int, FakeTransport] = {}
        self.codecs: dict[int, tuple[str, ...]] = {}  # what an instance says; else all
        self.hostname = "127.0.0.1"  # of all of them
        self.sent_types: list[MessageType] = []
        self.sent: list[tuple[int, int, str]] = []  # receiver, part, codec
        self.parcels: list[Parcel] = []
        self.encoded_bytes = 0
        self.largest_encoded_bytes = 0
        self.loses: Callable[[TransferKey], bool] = lambda key: False
        self.lost_count = 0
        self._calls: list[Callable[[], None]] = []
        self._numbers = itertools.count()
        self._is_held = False
        self._is_closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._deliver, name="fake-network")

    def __enter__(self) -> FakeNetwork:
        self._thread.start()
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        self._thread.join()

    def hold(self) -> None:
        """Delivers no payload until `let_go`."""
        with self._changed:
            self._is_held = True

    def let_go(self) -> None:
        with self._changed:
            self._is_held = False
            self._changed.notify_all()

    def wait_for_parcels(self, count: int, timeout: float) -> bool:
        """Until that many payloads are held back."""
        with self._changed:
            return self._changed.wait_for(lambda: len(self.parcels) >= count, timeout)

    def wait_for_lost(self, count: int, timeout: float) -> bool:
        """Until that many payloads were lost on their way, as `loses` says: nobody is told."""
        with self._changed:
            return self._changed.wait_for(lambda: self.lost_count >= count, timeout)

    def call(self, fn: Callable[[], None]) -> None:
        """Runs `fn` on the network's thread: it stands for the control threads."""
        with self._changed:
            self._calls.append(fn)
            self._changed.notify_all()

    def flush(self, timeout: float) -> bool:
        """Waits until every event so far was handled."""
        handled = threading.Event()
        self.call(handled.set)
        return handled.wait(timeout)

    def connect(self, first: int, second: int) -> None:
        for one, other in ((first, second), (second, first)):
            codecs = self.codecs.get(other, available_codecs())
            self._report(one, PeerConnected(other, 1, (self.hostname, 9000 + other), codecs))

    def lose(self, peer: int, reason: str = "silent for 3.0 s") -> None:
        """All others notice that `peer` is gone."""
        for each in self.transports:
            if each != peer:
                self._report(each, PeerLost(peer, reason))

    def _report(self, receiver: int, event: PeerEvent) -> None:
        self.call(lambda: self.transports[receiver].report(event))

    def post(
        self, receiver: int, key: TransferKey, payload: EncodedPayload, message_type: MessageType
    ) -> Handle[None]:
        handle: Handle[None] = Handle(f"buffer {key} to instance {receiver}")
        size = 0 if payload.codec == "raw" else payload.size
        self.sent.append((receiver, key.part, payload.codec))
        with self._changed:
            self.encoded_bytes += size
            self.largest_encoded_bytes = max(self.largest_encoded_bytes, self.encoded_bytes)
            due_at = time.monotonic() + self.rng.random() * LARGEST_DELAY
            parcel = Parcel(due_at, next(self._numbers), receiver, key, payload, handle)
            heapq.heappush(self.parcels, parcel)
            self.sent_types.append(message_type)
            self._changed.notify_all()
        handle.add_done_callback(lambda _: self._on_done(size))
        return handle

    def _on_done(self, size: int) -> None:
        with self._changed:
            self.encoded_bytes -= size
            self._changed.notify_all()

    def wait_for_no_copies(self, timeout: float) -> bool:
        """Until no encoded copy is on its way any more."""
        with self._changed:
            return self._changed.wait_for(lambda: self.encoded_bytes == 0, timeout)

    def _deliver(self) -> None:
        while True:
            with self._changed:
                while not (self._is_closed or self._calls or self._parcel_delay() == 0):
                    self._changed.wait(self._parcel_delay())
                if self._is_closed:
                    return
                calls, self._calls = self._calls, []
                parcel = heapq.heappop(self.parcels) if self._parcel_delay() == 0 else None
            for fn in calls:
                fn()
            if parcel is not None and self.loses(parcel.key):
                with self._changed:
                    self.lost_count += 1
                    self._changed.notify_all()
            elif parcel is not None and not parcel.handle.done():
                self.transports[parcel.receiver].arrive(parcel.key, parcel.payload)
                parcel.handle.set_result(None)

    def _parcel_delay(self) -> float | None:
        """Seconds until the next payload is due; None: there is none that may go."""
        if self._is_held or not self.parcels:
            return None
        return max(0.0, self.parcels[0].due_at - time.monotonic())


class FakeTransport:
    """One instance's end of a `FakeNetwork`."""

    def __init__(self, network: FakeNetwork, index: int) -> None:
        self.network = network
        self.index = index
        self.listeners: list[PeerListener] = []
        self.message_listeners: dict[MessageType, list[MessageListener]] = {}
        self.members: dict[int, Address] = {}
        self.is_started = False
        self.is_closed = False
        self.failure: BaseException | None = None
        self.ended: Handle[None] = Handle("the transport of this instance")
        self.ended_jobs: list[str] = []
        self.sharing: set[int] = set()  # peers that share memory
        self.bandwidths: dict[int, float] = {}
        self.chains: list[tuple[int, ...]] = []
        self.claims: dict[TransferKey, Handle[ReceivedBuffer]] = {}
        self.arrived: dict[TransferKey, ReceivedBuffer] = {}
        self.released_sizes: list[int] = []
        self.damage: Callable[[bytes], bytes] = lambda data: data
        self.after_arrival: Callable[[], object] = lambda: None
        self._lock = threading.Lock()
        network.transports[index] = self

    def start(self) -> None:
        self.is_started = True

    def close(self) -> None:
        self.is_closed = True
        self.ended.cancel("this instance was closed")

    def fail(self, error: BaseException) -> None:
        """A thread of it dies."""
        self.failure = error
        self.ended.set_exception(error)

    def add_member(self, peer: int, address: Address) -> None:
        self.members[peer] = address

    def add_peer_listener(self, fn: PeerListener) -> None:
        self.listeners.append(fn)

    def send_message(
        self, peer: int, message_type: MessageType, payload: bytes, *, require_ack: bool = True
    ) -> Handle[None]:
        handle: Handle[None] = Handle(f"{message_type.name} to instance {peer}")

        def deliver() -> None:
            for fn in self.network.transports[peer].message_listeners.get(message_type, ()):
                fn(self.index, payload)
            handle.set_result(None)

        self.network.call(deliver)
        return handle

    def add_message_listener(self, message_type: MessageType, fn: MessageListener) -> None:
        self.message_listeners.setdefault(message_type, []).append(fn)

    def send_buffer(
        self, peer: int, key: TransferKey, payload: EncodedPayload, *, message_type: MessageType
    ) -> Handle[None]:
        assert key.source == self.index
        return self.network.post(peer, key, payload, message_type)

    def allocate(self, size: int) -> memoryview:
        return memoryview(bytearray(size))

    def shares_memory(self, peer: int) -> bool:
        return peer in self.sharing

    def bandwidth_to(self, peer: int) -> float:
        return self.bandwidths.get(peer, 0.0)

    def send_chain(
        self,
        peers: Sequence[int],
        key: TransferKey,
        payload: EncodedPayload,
        *,
        message_type: MessageType,
    ) -> dict[int, Handle[None]]:
        self.chains.append(tuple(peers))
        return {
            peer: self.send_buffer(peer, key, payload, message_type=message_type) for peer in peers
        }

    def receive_buffer(
        self,
        key: TransferKey,
        *,
        peer: int,
        before_claim: Callable[[Handle[ReceivedBuffer]], object] | None = None,
    ) -> Handle[ReceivedBuffer]:
        assert key.source == peer

        def forget() -> None:
            with self._lock:
                self.claims.pop(key, None)

        handle: Handle[ReceivedBuffer] = Handle(f"buffer {key}", on_cancel=forget)
        if before_claim is not None:
            before_claim(handle)
        if handle.done():
            return handle
        with self._lock:
            buffer = self.arrived.pop(key, None)
            if buffer is None:
                self.claims[key] = handle
        if buffer is not None:
            handle.set_result(buffer)
        return handle

    def report(self, event: PeerEvent) -> None:
        for fn in self.listeners:
            fn(event)
        if isinstance(event, PeerLost):  # what is complete stays, all else fails
            text = f"instance {event.peer} was lost: {event.reason}"
            with self._lock:
                keys = [each for each in self.claims if each.source == event.peer]
                claims = [self.claims.pop(key) for key in keys]
            for claim in claims:
                claim.set_exception(errors.PeerLost(text, peer=event.peer))

    def arrive(self, key: TransferKey, payload: EncodedPayload) -> None:
        data = self.damage(payload.prefix + bytes(payload.body))
        memory = memoryview(bytearray(data))
        buffer = ReceivedBuffer(memory, lambda: self.released_sizes.append(len(data)))
        with self._lock:
            claim = self.claims.pop(key, None)
            if claim is None:
                assert key not in self.arrived, f"{key} arrived twice"
                self.arrived[key] = buffer
        if claim is not None:
            claim.set_result(buffer)
            self.after_arrival()

    def end_job(self, job_id: str) -> None:
        self.ended_jobs.append(job_id)

    def peers(self) -> list[PeerInfo]:
        return [
            PeerInfo(peer, address, is_connected=True, rtt=0.001, bytes_sent=12_300_000)
            for peer, address in sorted(self.members.items())
        ]

    def stats(self) -> dict[str, int]:
        return {"malformed": 0, "replayed": 2}


class FakeDiscovery:
    """Knows every member from the start."""

    def __init__(self, index: int, count: int) -> None:
        self.peers = [each for each in range(count) if each != index]
        self.calls: list[tuple[str, int]] = []
        self.is_closed = False
        self.fail: FailureListener

    def start(self, on_member: MemberListener, on_failure: FailureListener) -> None:
        self.fail = on_failure
        for peer in self.peers:
            on_member(peer, ("127.0.0.1", 9000 + peer))

    def on_heard(self, peer: int, address: Address, *, is_observer: bool = False) -> None:
        who = "observer heard" if is_observer else "heard"
        self.calls.append((f"{who} at {address[0]}", peer))

    def on_peer_connected(self, peer: int) -> None:
        self.calls.append(("connected", peer))

    def on_peer_lost(self, peer: int) -> None:
        self.calls.append(("lost", peer))

    def troubles(self) -> dict[int, str]:
        return {self.peers[-1]: "cannot resolve its name"}

    def stop_soon(self) -> None:
        self.is_closed = True

    def close(self) -> None:
        self.is_closed = True


class FakeClusters:
    """`count` clusters on one network; they close with the context."""

    def __init__(self, count: int, *, seed: int = 0, **settings: object) -> None:
        self.network = FakeNetwork(random.Random(seed))
        addresses = [("127.0.0.1", 9000 + index) for index in range(count)]
        self.clusters = []
        self.discoveries = []
        for index in range(count):
            config = ClusterConfig.static(index, addresses)
            transport = FakeTransport(self.network, index)
            discovery = FakeDiscovery(index, count)
            changed = replace(config, **{"memory_budget": 1 << 30, **settings})  # type: ignore[arg-type]
            self.discoveries.append(discovery)
            self.clusters.append(Cluster(changed, transport, discovery, engine_name="fake"))

    def __enter__(self) -> FakeClusters:
        self.network.__enter__()
        for cluster in self.clusters:
            cluster.start()
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for cluster in self.clusters:
            cluster.close()
        self.network.__exit__(error_type, error, traceback)

    def connect_all(self, timeout: float) -> None:
        for first, second in itertools.combinations(range(len(self.clusters)), 2):
            self.network.connect(first, second)
        for cluster in self.clusters:
            cluster.wait_until_ready(timeout)
