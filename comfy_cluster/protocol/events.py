"""What the protocol core tells the layer above: frozen values, taken with `Endpoint.next_event`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from comfy_cluster.errors import ClusterError
from comfy_cluster.wire import MessageType, TransferKey

if TYPE_CHECKING:
    from typing_extensions import Buffer


@dataclass(frozen=True, slots=True)
class PeerConnected:
    """Both sides hold each other's session id: messages and buffers can go."""

    peer: int
    boot_id: int
    """Another one than last time: the peer was restarted in between."""
    address: tuple[str, int]
    codecs: tuple[str, ...] = ()
    """What it said that it can decode."""


@dataclass(frozen=True, slots=True)
class PeerLost:
    """The connection is over; what was in transfer fails in the events that follow this one."""

    peer: int
    reason: str


@dataclass(frozen=True, slots=True)
class PeerRefused:
    """An instance answered that cannot be part of this cluster; once for each reason."""

    peer: int
    reason: str


@dataclass(frozen=True, slots=True)
class StrangerHeard:
    """An instance of this cluster says HELLO from an address that nobody named."""

    peer: int
    address: tuple[str, int]
    is_observer: bool = False
    """It only looks, in the place of `peer`."""


@dataclass(frozen=True, slots=True)
class StunReceived:
    """A STUN packet with a transaction id that the engine was told to expect; no more is known."""

    address: tuple[str, int]
    packet: bytes


@dataclass(frozen=True, slots=True)
class MessageReceived:
    peer: int
    message_type: MessageType
    payload: bytes


@dataclass(frozen=True, slots=True)
class MessageDelivered:
    """The peer acknowledged the message."""

    message_id: int


@dataclass(frozen=True, slots=True)
class MessageFailed:
    message_id: int
    error: ClusterError


@dataclass(frozen=True, slots=True)
class BufferArrived:
    """A buffer is complete and not yet verified: answer with `confirm_buffer` or `reject_buffer`.

    `memory` is what `allocate(size)` gave, or what came through shared memory; nobody writes into
    it any more.
    """

    peer: int
    buffer_id: int
    key: TransferKey
    message_type: MessageType
    memory: Buffer
    size: int
    digest: bytes
    """Empty: it came through shared memory, and there is nothing to verify."""


@dataclass(frozen=True, slots=True)
class DigestNeeded:
    """A payload without digest cannot go through shared memory: answer with `provide_digest`.

    `buffer_id` is what `send_buffer` returned.
    """

    buffer_id: int


@dataclass(frozen=True, slots=True)
class RelayEnded:
    """The memory of a confirmed buffer is no longer read: it may be changed from now on."""

    buffer_id: int


@dataclass(frozen=True, slots=True)
class RelayLate:
    """The memory of a confirmed buffer will be read for longer than a user should be kept waiting;
    `RelayEnded` follows when that is over."""

    buffer_id: int


@dataclass(frozen=True, slots=True)
class BufferSent:
    """The receiver confirmed the digest; `buffer_id` is what `send_buffer` or `send_chain` gave."""

    buffer_id: int


@dataclass(frozen=True, slots=True)
class BufferFailed:
    """`buffer_id` is what `send_buffer` or `send_chain` gave."""

    buffer_id: int
    error: ClusterError


@dataclass(frozen=True, slots=True)
class IncomingFailed:
    """Nothing will arrive under this key, or what arrived is gone.

    `buffer_id` names the buffer of an earlier `BufferArrived` that is gone; None if none arrived.
    """

    key: TransferKey
    peer: int
    error: ClusterError
    buffer_id: int | None = None


Event = (
    PeerConnected
    | PeerLost
    | PeerRefused
    | StrangerHeard
    | StunReceived
    | MessageReceived
    | MessageDelivered
    | MessageFailed
    | BufferArrived
    | RelayEnded
    | RelayLate
    | DigestNeeded
    | BufferSent
    | BufferFailed
    | IncomingFailed
)
