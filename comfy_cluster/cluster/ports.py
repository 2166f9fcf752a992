"""What the cluster needs of the layers below, as Protocols.

`transport.Transport` and the classes of `discovery/` offer it; tests put their own in place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from comfy_cluster.codec.payload import EncodedPayload
from comfy_cluster.discovery.base import Address
from comfy_cluster.protocol.events import PeerConnected, PeerLost, PeerRefused, StrangerHeard
from comfy_cluster.transport.handle import Handle
from comfy_cluster.transport.memory import ReceivedBuffer
from comfy_cluster.transport.peer_info import PeerInfo
from comfy_cluster.wire import MessageType, TransferKey

PeerEvent = PeerConnected | PeerLost | PeerRefused | StrangerHeard
PeerListener = Callable[[PeerEvent], object]
MessageListener = Callable[[int, bytes], object]


class Transport(Protocol):
    """Moves payloads between instances. Thread-safe; no method but `close` blocks."""

    @property
    def failure(self) -> BaseException | None:
        """What ended one of its threads; from then on nothing can be sent or received."""

    @property
    def ended(self) -> Handle[None]:
        """Fails when one of its threads does, with `failure`, or when it is closed, with
        TransferCancelled; never has a result."""

    def start(self) -> None:
        """Binds the socket, starts the threads."""

    def close(self) -> None:
        """Says goodbye to the peers; what is under way fails with TransferCancelled."""

    def add_member(self, peer: int, address: Address) -> None:
        """Tells where `peer` may be reached; again when that changes."""

    def add_peer_listener(self, fn: PeerListener) -> None:
        """`fn` is called on the control thread, and must not block."""

    def send_message(
        self, peer: int, message_type: MessageType, payload: bytes, *, require_ack: bool = True
    ) -> Handle[None]:
        """Done when `peer` acknowledged it; without `require_ack`, when it was handed on."""

    def add_message_listener(self, message_type: MessageType, fn: MessageListener) -> None:
        """`fn(peer, payload)` is called on the control thread, and must not block."""

    def allocate(self, size: int) -> memoryview:
        """Writable memory for a payload, touched before if there is such."""

    def shares_memory(self, peer: int) -> bool:
        """Whether payloads to and from `peer` need no network: it is on this machine."""

    def bandwidth_to(self, peer: int) -> float:
        """Bytes a second that the path to `peer` was seen to carry; 0.0: not known yet."""

    def send_buffer(
        self, peer: int, key: TransferKey, payload: EncodedPayload, *, message_type: MessageType
    ) -> Handle[None]:
        """Done when `peer` has the payload and found its digest right."""

    def send_chain(
        self,
        peers: Sequence[int],
        key: TransferKey,
        payload: EncodedPayload,
        *,
        message_type: MessageType,
    ) -> Mapping[int, Handle[None]]:
        """The same to each of `peers`, which send it on to each other in that order."""

    def receive_buffer(
        self,
        key: TransferKey,
        *,
        peer: int,
        before_claim: Callable[[Handle[ReceivedBuffer]], object] | None = None,
    ) -> Handle[ReceivedBuffer]:
        """Done when the payload of that key is here. `before_claim(handle)` may cancel it.

        Fails when `peer` is lost, or does not connect within the time a message is tried for.
        """

    def end_job(self, job_id: str) -> None:
        """Drops what belongs to the job."""

    def peers(self) -> Sequence[PeerInfo]:
        """Every other instance, in index order, connected or not."""

    def stats(self) -> Mapping[str, int]:
        """Counters by name."""
