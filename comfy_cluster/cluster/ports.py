"""What the cluster needs of the layers below, as Protocols.

`transport.Transport` and the classes of `discovery/` offer it; tests put their own in place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from comfy_cluster.codec.payload import EncodedPayload
from comfy_cluster.discovery.base import Address
from comfy_cluster.protocol.events import PeerConnected, PeerLost, PeerRefused
from comfy_cluster.transport.handle import Handle
from comfy_cluster.wire import MessageType, TransferKey

PeerEvent = PeerConnected | PeerLost | PeerRefused
PeerListener = Callable[[PeerEvent], None]


class ReceivedBuffer(Protocol):
    """A payload that arrived, whose digest was found right."""

    @property
    def data(self) -> memoryview:
        """The whole payload, writable; whatever views it keeps its memory alive."""

    def release(self) -> None:
        """Gives its bytes back to the memory budget; the memory lives on while it is viewed."""


class PeerView(Protocol):
    """What the transport knows of one peer."""

    @property
    def index(self) -> int: ...
    @property
    def address(self) -> Address | None: ...
    @property
    def is_connected(self) -> bool: ...
    @property
    def rtt(self) -> float | None:
        """Seconds."""

    @property
    def bytes_sent(self) -> int: ...
    @property
    def bytes_received(self) -> int: ...


class Transport(Protocol):
    """Moves payloads between instances. Thread-safe; no method but `close` blocks."""

    def start(self) -> None:
        """Binds the socket, starts the threads."""

    def close(self) -> None:
        """Says goodbye to the peers; what is under way fails with TransferCancelled."""

    def add_member(self, peer: int, address: Address) -> None:
        """Tells where `peer` may be reached; again when that changes."""

    def add_peer_listener(self, fn: PeerListener) -> None:
        """`fn` is called on the control thread, and must not block."""

    def send_buffer(
        self, peer: int, key: TransferKey, payload: EncodedPayload, *, message_type: MessageType
    ) -> Handle[None]:
        """Done when `peer` has the payload and found its digest right."""

    def receive_buffer(self, key: TransferKey, *, peer: int) -> Handle[ReceivedBuffer]:
        """Done when the payload of that key is here."""

    def end_job(self, job_id: str) -> None:
        """Drops what belongs to the job."""

    def peers(self) -> Sequence[PeerView]: ...

    def stats(self) -> Mapping[str, int]: ...
