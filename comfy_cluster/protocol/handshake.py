"""How two instances come to hold each other's session id. One `Handshake` a peer, no timers.

How it works: each side has a *pending* session id for the other, a random u32 that it tells only in
HELLOs to that peer's address. A HELLO that echoes the pending id comes from somebody who received
it there, and makes the connection: our side of it is the pending id, the peer's side is the session
id in that HELLO. A new pending id is drawn then. So a HELLO with a forged sender address, which
cannot echo what it never saw, changes nothing, and a restarted peer replaces its connection
after one round trip. A HELLO that echoes any other id is old or an answer to a forged one, and is
not answered: answering would let a forger make two connected instances connect anew. Where there is
no connection its session id is echoed from then on: else two instances that both echo an old id of
the other one would never connect.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from comfy_cluster.protocol.settings import ProtocolSettings
from comfy_cluster.wire import PROTOCOL_VERSION, Announce, InstanceRole, Introduction


@dataclass(frozen=True, slots=True)
class Connection:
    """What makes one connection: the ids, and what the peer told with them."""

    local_session: int
    remote_session: int
    announce: Announce

    @property
    def boot_id(self) -> int:
        return self.announce.boot_id

    @property
    def is_observer(self) -> bool:
        return self.announce.is_observer

    def is_shown_by(self, announce: Announce) -> bool:
        """Whether a HELLO says that the peer has this connection too."""
        ids = (announce.session_id, announce.echo_session_id)
        return announce.is_connected and ids == (self.remote_session, self.local_session)


@dataclass(frozen=True, slots=True)
class HelloOutcome:
    """What a HELLO leads to. At most one of `connection`, `refusal` and `is_stale` is there."""

    answer: Announce | None = None
    connection: Connection | None = None
    """The new one; it replaces any other."""
    refusal: str = ""
    is_stale: bool = False


class Handshake:
    """State of one peer. `new_session` draws a session id that no peer of ours has."""

    def __init__(
        self, peer: int, *, settings: ProtocolSettings, new_session: Callable[[], int]
    ) -> None:
        self.connection: Connection | None = None
        self.pending_session = new_session()
        self._peer = peer
        self._settings = settings
        self._new_session = new_session
        self._heard_session = 0

    @property
    def sessions(self) -> set[int]:
        """Session ids of ours that this peer uses or may come to use."""
        current = {self.connection.local_session} if self.connection else set()
        return {self.pending_session} | current

    @property
    def is_heard(self) -> bool:
        """Whether the peer's HELLOs arrive here, though it may not get ours."""
        return self.connection is not None or self._heard_session != 0

    def hello(self) -> Announce:
        """What to tell the peer now, unasked."""
        if self.connection is not None:
            return self._connected_hello(self.connection)
        return self._pending_hello(self._heard_session)

    def on_lost(self) -> None:
        """The connection is over; the next one has other ids."""
        self.connection = None
        self.pending_session = self._new_session()
        self._heard_session = 0

    def on_hello(self, announce: Announce) -> HelloOutcome:
        refusal = refusal_of(announce, self._peer, self._settings)
        if refusal:
            return HelloOutcome(refusal=refusal)
        if self._is_current(announce):
            assert self.connection is not None
            answer = None if announce.is_connected else self._connected_hello(self.connection)
            return HelloOutcome(answer=answer)
        if announce.echo_session_id == self.pending_session:
            return self._connect(announce)
        if self.connection is None:
            self._heard_session = announce.session_id
        if announce.echo_session_id != 0:
            return HelloOutcome(is_stale=True)
        return HelloOutcome(answer=self._pending_hello(announce.session_id))

    def _connect(self, announce: Announce) -> HelloOutcome:
        connection = Connection(self.pending_session, announce.session_id, announce)
        self.connection = connection
        self.pending_session = self._new_session()
        self._heard_session = 0
        answer = None if announce.is_connected else self._connected_hello(connection)
        return HelloOutcome(answer=answer, connection=connection)

    def _is_current(self, announce: Announce) -> bool:
        connection = self.connection
        return (
            connection is not None
            and connection.boot_id == announce.boot_id
            and connection.remote_session == announce.session_id
            and announce.echo_session_id in (0, connection.local_session)
        )

    def _connected_hello(self, connection: Connection) -> Announce:
        return self._announce(connection.local_session, connection.remote_session, True)

    def _pending_hello(self, echo_session: int) -> Announce:
        return self._announce(self.pending_session, echo_session, False)

    def _announce(self, session: int, echo_session: int, is_connected: bool) -> Announce:
        ours = self._settings
        return Announce(
            cluster_id=ours.cluster_id,
            instance_index=ours.instance_index,
            instance_count=ours.instance_count,
            role=ours.own_role,
            boot_id=ours.boot_id,
            session_id=session,
            echo_session_id=echo_session,
            is_connected=is_connected,
            packet_size=ours.receivable_packet_size,
            software_version=ours.software_version,
            engine=ours.engine_name,
            codecs=ours.codecs,
            is_observer=ours.is_observer,
        )


def refusal_of(announce: Announce, peer: int, ours: ProtocolSettings) -> str:
    """Why the sender cannot be instance `peer` of this cluster; empty when it can."""
    who = f"instance {peer}"
    refusal = version_refusal(announce, who)
    if refusal:
        return refusal
    if announce.cluster_id != ours.cluster_id:
        return (
            f"{who} belongs to cluster {announce.cluster_id!r}, this instance to"
            f" {ours.cluster_id!r}: CLUSTER_ID must be the same everywhere"
        )
    refusal = count_refusal(announce, who, ours.instance_count)
    if refusal:
        return refusal
    if announce.instance_index != peer:
        return (
            f"the address of instance {peer} answers as instance"
            f" {announce.instance_index}: check INSTANCE_INDEX there and the order of addresses"
        )
    is_leader = announce.role is InstanceRole.LEADER
    if is_leader != (announce.instance_index == 0):
        return f"{who} says that it is a {announce.role.name.lower()}"
    return ""


def version_refusal(told: Introduction, who: str) -> str:
    """What is wrong with the protocol version that `who` tells; empty if nothing is."""
    if told.protocol_version == PROTOCOL_VERSION:
        return ""
    return (
        f"{who} speaks protocol version {told.protocol_version}"
        f" (software {told.software_version or 'unknown'}), this instance speaks"
        f" {PROTOCOL_VERSION}: install the same version everywhere"
    )


def count_refusal(told: Introduction, who: str, instance_count: int) -> str:
    """What is wrong with the instance count that `who` tells; empty if nothing is."""
    if told.instance_count == instance_count:
        return ""
    return (
        f"{who} counts {told.instance_count} instances, this instance"
        f" {instance_count}: INSTANCE_COUNT must be the same everywhere"
    )
