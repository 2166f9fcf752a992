"""Counters of the protocol core, and what it can say about one peer. Plain numbers, no rules."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class ProtocolStats:
    """Counts since the start; the engine counts packets and chunks itself."""

    hellos_sent: int = 0
    hellos_received: int = 0
    hellos_stale: int = 0
    """HELLOs that echo a session id that this instance does not use: old, or forged."""
    hellos_unanswered: int = 0
    """HELLOs above the rate at which one peer gets answers."""
    peers_refused: int = 0
    """HELLOs of instances that cannot be part of this cluster."""
    connections_made: int = 0
    connections_lost: int = 0
    observers_connected: int = 0
    """Connections of those who only look: they are not among `connections_made`."""
    heartbeats_sent: int = 0
    messages_sent: int = 0
    """Messages that need an ACK, each counted once."""
    messages_resent: int = 0
    messages_timed_out: int = 0
    messages_received: int = 0
    messages_duplicate: int = 0
    messages_malformed: int = 0
    """Messages that cannot be parsed, or that break a rule of the protocol."""
    messages_misaddressed: int = 0
    """Messages that name another sender or target than their connection's."""
    messages_dropped: int = 0
    """Messages without ACK that were not sent because the peer is not connected."""
    acks_sent: int = 0
    buffers_sent: int = 0
    buffers_resent: int = 0
    """Buffers sent a second time because they arrived damaged."""
    buffers_unshared: int = 0
    """Buffers announced for shared memory that were sent over UDP in the end."""
    buffers_failed: int = 0
    """Outgoing buffers that failed or were cancelled."""
    buffers_arrived: int = 0
    buffers_rejected: int = 0
    """Incoming buffers whose digest did not match."""
    buffers_refused: int = 0
    """Announcements answered with a failure: too many wait, or no memory."""
    buffers_expired: int = 0
    """Arrived buffers that nobody came for."""
    buffers_relayed: int = 0
    """Incoming buffers that the next instance of their route received from here."""
    routes_broken: int = 0
    """How often receivers of a payload of this instance needed another route."""


@dataclass(frozen=True, slots=True)
class PeerInfo:
    """What is known of one peer now; texts and ids are empty or 0 while it was never connected."""

    peer: int
    address: tuple[str, int] | None
    """None: not known any more."""
    is_connected: bool
    boot_id: int = 0
    role: str = ""
    software_version: str = ""
    engine_name: str = ""
    connected_at: float = 0.0
    """Moment of the present connection, on the clock of `now`."""
    packet_size: int = 0
    message_rtt: float = 0.0
    """Smoothed seconds from a message to its ACK; 0.0: none measured."""
    messages_waiting: int = 0
    """Messages to this peer without an ACK so far."""
    is_heard: bool = False
    """Its HELLOs arrive here. Without a connection: ours do not arrive there."""
    is_observer: bool = False
    """It only looks: reached both ways, and not connected as a member would be."""
