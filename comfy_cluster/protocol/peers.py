"""One member of the cluster as this instance sees it: all that is kept between two events."""

from __future__ import annotations

from dataclasses import dataclass, field

from comfy_cluster.protocol.engine_port import Address
from comfy_cluster.protocol.handshake import Connection, Handshake
from comfy_cluster.protocol.inbox import Inbox
from comfy_cluster.protocol.outbox import Outbox
from comfy_cluster.protocol.stats import PeerInfo

FIRST_HELLO_DELAY = 0.1  # seconds; LAN peers find each other within one or two of them
LONGEST_HELLO_DELAY = 1.0  # seconds; a peer that comes back says HELLO itself, and is answered


@dataclass(slots=True)
class Peer:
    """Changed by `Connections` only."""

    index: int
    address: Address | None
    """None: another member was found at the one that it had."""
    handshake: Handshake
    outbox: Outbox
    inbox: Inbox = field(default_factory=Inbox)
    connection: Connection | None = None
    """Of a member, or of an observer in its place: see `is_connected`."""
    is_confirmed: bool = False
    """The peer showed that it has the present connection too."""
    connected_at: float = 0.0
    packet_size: int = 0
    hello_delay: float = FIRST_HELLO_DELAY
    answer_tokens: float = 0.0
    answered_at: float = 0.0
    refusals: set[str] = field(default_factory=set)

    @property
    def is_connected(self) -> bool:
        """As a member: what waits for it can go."""
        return self.connection is not None and not self.connection.is_observer

    @property
    def is_observer(self) -> bool:
        """Only somebody who looks is there: reached, and given nothing but heartbeats."""
        return self.connection is not None and self.connection.is_observer

    def info(self) -> PeerInfo:
        connection = self.connection
        if connection is None:
            return PeerInfo(
                self.index,
                self.address,
                False,
                messages_waiting=len(self.outbox),
                is_heard=self.handshake.is_heard,
            )
        announce = connection.announce
        rtt = self.outbox.rtt
        return PeerInfo(
            self.index,
            self.address,
            self.is_connected,
            boot_id=announce.boot_id,
            role=announce.role.name,
            software_version=announce.software_version,
            engine_name=announce.engine,
            connected_at=self.connected_at,
            packet_size=self.packet_size,
            message_rtt=rtt.smoothed if rtt.has_sample else 0.0,
            messages_waiting=len(self.outbox),
            is_heard=True,
            is_observer=self.is_observer,
        )
