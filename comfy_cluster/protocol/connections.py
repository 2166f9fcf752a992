"""The members of the cluster: saying HELLO to them, connecting, and losing them.

Owns the `Peer`s. What becomes of messages and buffers is not known here: the listener is told.

An observer (`comfy-cluster doctor`) stands at the place of the member that it looks for: it is
connected to, so that both sides see what the path carries, but neither listener nor events tell of
it, what waits for the member goes on waiting, and it gives way to the member at once.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from typing import Protocol

from comfy_cluster.errors import LocalProtocolError, PeerLost, RemoteProtocolError
from comfy_cluster.protocol import events
from comfy_cluster.protocol.engine_port import Address, EnginePort
from comfy_cluster.protocol.handshake import Connection, Handshake, refusal_of
from comfy_cluster.protocol.inbox import Inbox
from comfy_cluster.protocol.liveness import Liveness
from comfy_cluster.protocol.outbox import Outbox
from comfy_cluster.protocol.peers import FIRST_HELLO_DELAY, LONGEST_HELLO_DELAY, Peer
from comfy_cluster.protocol.settings import ProtocolSettings
from comfy_cluster.protocol.stats import ProtocolStats
from comfy_cluster.protocol.timers import TimerKind, Timers
from comfy_cluster.wire import Announce, Message, MessageType

logger = logging.getLogger("comfy_cluster.protocol")

HELLO_GROWTH = 1.5
# Answers to one peer's HELLOs, a second: far above what a handshake needs, so that HELLOs with a
# forged sender cannot make this instance flood that peer.
ANSWERS_PER_SECOND = 20
LARGEST_REFUSALS = 8  # reasons kept for one peer; more would be somebody making them up


class ConnectionListener(Protocol):
    def on_connected(self, peer: Peer, now: float) -> None: ...

    def on_lost(self, peer: Peer, error: PeerLost, now: float) -> None: ...


class Connections:
    """`emit` takes events for the layer above."""

    def __init__(
        self,
        *,
        settings: ProtocolSettings,
        engine: EnginePort,
        rng: random.Random,
        timers: Timers,
        stats: ProtocolStats,
        emit: Callable[[events.Event], None],
        send_heartbeat: Callable[[int], None],
        listener: ConnectionListener,
    ) -> None:
        self.peers: dict[int, Peer] = {}
        self._settings = settings
        self._engine = engine
        self._rng = rng
        self._timers = timers
        self._stats = stats
        self._emit = emit
        self._listener = listener
        self._by_address: dict[Address, Peer] = {}
        self._claims: dict[Address, int] = {}  # addresses of connected peers, and who wants them
        self._refused_strangers: set[tuple[int, str]] = set()
        self._liveness = Liveness(
            settings=settings,
            engine=engine,
            timers=timers,
            send_heartbeat=send_heartbeat,
            on_silent=self._on_silent,
        )

    # Members

    def add(self, index: int, address: Address, now: float) -> None:
        """Begin to say HELLO to a member, or learn that its address is another one now.

        An address is of one member: the newest report takes it from the one that had it. But not
        from one that is connected there: that one has proved that it is, and a report has not. It
        is taken when that connection is over, unless there are newer reports by then.
        """
        self._check_index(index)
        owner = self._by_address.get(address)
        if owner is not None and owner.index != index and owner.is_connected:
            self._claim(owner, index, address)
            return
        self._forget_claims_of(index)
        self._claims.pop(address, None)
        if owner is not None and owner.index != index:
            self._dismiss(owner, "its address is that of a member", now)
            self._take_address(owner, index)
        peer = self.peers.get(index)
        if peer is None:
            peer = self.peers[index] = self._new_peer(index)
        left = peer.address
        if left == address:
            return
        self._forget_address(peer)
        peer.address = address
        peer.hello_delay = FIRST_HELLO_DELAY
        self._by_address[address] = peer
        self._engine.allow_address(address)
        self._dismiss(peer, "the member is elsewhere", now)
        if not peer.is_connected:
            self._say_hello_soon(peer, now)
        if left is not None:
            self._honour_claim(left, now)

    def remove(self, index: int, now: float) -> None:
        """Forget a member; what is in transfer with it fails."""
        peer = self.peers.get(index)
        if peer is None:
            return
        self._forget_claims_of(index)
        self._dismiss(peer, "removed from the cluster", now)
        self.lose(peer, "removed from the cluster", now)
        self._timers.cancel(TimerKind.HELLO, index)
        self._forget_address(peer)
        del self.peers[index]

    def is_connected(self, index: int) -> bool:
        peer = self.peers.get(index)
        return peer is not None and peer.is_connected

    def packet_size_to(self, index: int) -> int:
        """Of the present connection; 0 without one."""
        peer = self.peers.get(index)
        return peer.packet_size if peer is not None and peer.is_connected else 0

    def on_packet_size(self, index: int, packet_size: int) -> None:
        """The engine found out what the path carries."""
        peer = self.peers.get(index)
        if peer is not None and peer.is_connected:
            logger.debug("= %d takes packets of %d bytes", index, packet_size)
            peer.packet_size = packet_size

    def _check_index(self, index: int) -> None:
        ours = self._settings
        if index == ours.instance_index or not 0 <= index < ours.instance_count:
            raise LocalProtocolError(
                f"instance {index} cannot be a peer of instance {ours.instance_index} in a cluster"
                f" of {ours.instance_count}"
            )

    def _claim(self, owner: Peer, index: int, address: Address) -> None:
        if self._claims.get(address) == index:
            return
        self._forget_claims_of(index)
        self._claims[address] = index
        text = (
            f"its address is said to be {_show_address(address)}, where instance {owner.index} is"
            " connected: two instances cannot have one address"
        )
        logger.warning("! %d: %s", index, text)
        self._emit(events.PeerRefused(index, text))

    def _forget_claims_of(self, index: int) -> None:
        """It is said to be elsewhere, or nowhere."""
        self._claims = {where: each for where, each in self._claims.items() if each != index}

    def _honour_claim(self, address: Address, now: float) -> None:
        """Nobody who has proved it is at `address` any more."""
        claimer = self._claims.pop(address, None)
        if claimer is not None and not self.is_connected(claimer):
            self.add(claimer, address, now)

    def _take_address(self, owner: Peer, taker: int) -> None:
        """Instances that swap addresses are found one after the other; a name may also be wrong.

        The owner has no address then, and gets no HELLO, until one is found for it again.
        """
        assert owner.address is not None
        reason = f"its address {_show_address(owner.address)} is that of instance {taker} now"
        logger.warning("! %d %s: it has none until it is found anew", owner.index, reason)
        self._forget_address(owner)
        self._timers.cancel(TimerKind.HELLO, owner.index)

    def _new_peer(self, index: int) -> Peer:
        outbox = Outbox(
            index,
            settings=self._settings,
            timers=self._timers,
            stats=self._stats,
            send=lambda packed: self._engine.send_message(index, packed),
        )
        handshake = Handshake(index, settings=self._settings, new_session=self._new_session)
        return Peer(index, None, handshake, outbox, answer_tokens=ANSWERS_PER_SECOND)

    def _forget_address(self, peer: Peer) -> None:
        if peer.address is not None:
            del self._by_address[peer.address]
            self._engine.disallow_address(peer.address)
            peer.address = None

    def _new_session(self) -> int:
        """A random u32, not 0, that no peer of ours has: the engine finds the peer by it."""
        used = {0}.union(*(peer.handshake.sessions for peer in self.peers.values()))
        while (session := self._rng.getrandbits(32)) in used:
            pass
        return session

    # HELLO

    def on_hello(self, address: Address, payload: bytes, now: float) -> None:
        announce = self._parse_hello(payload)
        if announce is None:
            self._stats.messages_malformed += 1
            return
        self._stats.hellos_received += 1
        peer = self._by_address.get(address)
        if peer is None:
            self._on_stranger(address, announce)
            return
        outcome = peer.handshake.on_hello(announce)
        if outcome.refusal:
            self._refuse(peer, outcome.refusal)
            if announce.instance_index != peer.index and not peer.is_connected:
                self._on_successor(address, announce)
        if outcome.is_stale:
            self._stats.hellos_stale += 1
        if outcome.answer is not None:
            self._answer(peer, outcome.answer, now)
        if outcome.connection is not None:
            self._connect(peer, outcome.connection, now)
        if peer.connection is not None and peer.connection.is_shown_by(announce):
            self.on_message(peer)

    def _on_successor(self, address: Address, announce: Announce) -> None:
        """Another instance may be where one was that is gone, or that was never there."""
        if not refusal_of(announce, announce.instance_index, self._settings):
            self._on_stranger(address, announce)

    def _on_stranger(self, address: Address, announce: Announce) -> None:
        """It knows of this instance, and nobody here named its address: discovery decides."""
        ours, index = self._settings, announce.instance_index
        if announce.cluster_id != ours.cluster_id or index == ours.instance_index:
            return
        refusal = refusal_of(announce, index, ours)
        known = self.peers.get(index)
        if announce.is_observer and known is not None and known.handshake.is_heard:
            return  # somebody is there, and an observer takes nobody's place
        if not refusal:
            self._emit(events.StrangerHeard(index, address, announce.is_observer))
            return
        is_new = (index, refusal) not in self._refused_strangers
        if is_new and len(self._refused_strangers) < LARGEST_REFUSALS:
            self._refused_strangers.add((index, refusal))
            self._report_refusal(index, f"{refusal} (heard from {_show_address(address)})")

    def on_hello_timer(self, index: int, now: float) -> None:
        peer = self.peers.get(index)
        if peer is None or (peer.connection is not None and peer.is_confirmed):
            return
        self._send_hello(peer, peer.handshake.hello())
        self._say_hello_soon(peer, now)
        peer.hello_delay = min(peer.hello_delay * HELLO_GROWTH, LONGEST_HELLO_DELAY)

    def on_message(self, peer: Peer) -> None:
        """It shows that the peer has the connection: no more HELLOs."""
        if not peer.is_confirmed:
            peer.is_confirmed = True
            self._timers.cancel(TimerKind.HELLO, peer.index)

    def _parse_hello(self, payload: bytes) -> Announce | None:
        try:
            message = Message.parse(payload)
            if message.message_type is not MessageType.ANNOUNCE:
                return None
            return Announce.parse(message.payload)
        except RemoteProtocolError as error:
            logger.debug("< HELLO dropped: %s", error)
            return None

    def _answer(self, peer: Peer, announce: Announce, now: float) -> None:
        earned = (now - peer.answered_at) * ANSWERS_PER_SECOND
        peer.answer_tokens = min(peer.answer_tokens + earned, ANSWERS_PER_SECOND)
        peer.answered_at = now
        if peer.answer_tokens < 1:
            self._stats.hellos_unanswered += 1
            return
        peer.answer_tokens -= 1
        self._send_hello(peer, announce)

    def _send_hello(self, peer: Peer, announce: Announce) -> None:
        assert peer.address is not None
        message = Message(
            message_id=0,
            message_type=MessageType.ANNOUNCE,
            sender_instance=self._settings.instance_index,
            target_instance=peer.index,
            payload=announce.pack(),
        )
        self._stats.hellos_sent += 1
        self._engine.send_hello(peer.address, message.pack())

    def _say_hello_soon(self, peer: Peer, now: float) -> None:
        if peer.address is None:
            return
        delay = peer.hello_delay * self._rng.uniform(0.8, 1.2)
        if peer.hello_delay == FIRST_HELLO_DELAY and peer.connection is None:
            delay *= self._rng.random()  # the very first one soon, yet not all instances at once
        self._timers.set(TimerKind.HELLO, peer.index, now + delay)

    def _refuse(self, peer: Peer, reason: str) -> None:
        self._stats.peers_refused += 1
        if reason in peer.refusals or len(peer.refusals) >= LARGEST_REFUSALS:
            return
        peer.refusals.add(reason)
        self._report_refusal(peer.index, reason)

    def _report_refusal(self, index: int, reason: str) -> None:
        logger.warning("! %d refused: %s", index, reason)
        self._emit(events.PeerRefused(index, reason))

    # Connections

    def _connect(self, peer: Peer, connection: Connection, now: float) -> None:
        if peer.is_observer:
            self._disconnect(peer, "another one connects")
        elif peer.connection is not None:
            self._end(peer, _why_replaced(peer.connection, connection), now)
        peer.connection = connection
        peer.connected_at = now
        peer.is_confirmed = False
        peer.inbox = Inbox()
        peer.refusals.clear()
        peer.hello_delay = FIRST_HELLO_DELAY
        assert peer.address is not None  # its HELLO came from there
        receivable = connection.announce.packet_size
        peer.packet_size = self._settings.packet_size_to(peer.address, receivable)
        self._engine.connect_peer(
            peer.index,
            peer.address,
            local_session=connection.local_session,
            remote_session=connection.remote_session,
            packet_size=peer.packet_size,
            largest_packet_size=self._settings.probed_size_to(receivable),
            now=now,
        )
        if connection.is_observer:
            self._stats.observers_connected += 1
        else:
            self._stats.connections_made += 1
        logger.debug("= %d connected, boot id %016x", peer.index, connection.boot_id)
        if peer.is_connected:
            codecs = connection.announce.codecs
            self._emit(events.PeerConnected(peer.index, connection.boot_id, peer.address, codecs))
        self._liveness.add(peer.index, now)
        self._say_hello_soon(peer, now)
        if peer.is_connected:
            self._listener.on_connected(peer, now)

    def lose(self, peer: Peer, reason: str, now: float) -> None:
        """End the connection, if there is one; HELLOs begin anew."""
        if peer.is_observer:
            self._dismiss(peer, reason, now)
            return
        if peer.is_connected:
            peer.handshake.on_lost()
        self._end(peer, reason, now)
        self._begin_anew(peer, now)

    def _dismiss(self, peer: Peer, reason: str, now: float) -> None:
        """End the connection of an observer, if that is who is there: nobody else is affected."""
        if peer.is_observer:
            peer.handshake.on_lost()
            self._disconnect(peer, reason)
            self._begin_anew(peer, now)

    def _begin_anew(self, peer: Peer, now: float) -> None:
        peer.hello_delay = FIRST_HELLO_DELAY
        self._say_hello_soon(peer, now)
        if peer.address is not None:
            self._honour_claim(peer.address, now)

    def on_unanswered(self, index: int, now: float) -> None:
        """The peer never acknowledged a message between the cores."""
        if self.is_connected(index):
            self.lose(self.peers[index], "it does not acknowledge messages", now)

    def close(self) -> None:
        """Forget all connections; the engine keeps them, to send what is queued."""
        for peer in self.peers.values():
            peer.connection = None
            self._liveness.remove(peer.index)
            self._timers.cancel(TimerKind.HELLO, peer.index)

    def on_liveness_timer(self, now: float) -> None:
        self._liveness.on_timer(now)

    def _on_silent(self, index: int, silence: float, now: float) -> None:
        peer = self.peers[index]
        if peer.is_connected:
            logger.warning("Instance timeout: instance %d was silent for %.1f s", index, silence)
        self.lose(peer, f"silent for {silence:.1f} s", now)

    def _end(self, peer: Peer, reason: str, now: float) -> None:
        """Everything of the present connection fails. Without one, what waits for one does."""
        error = PeerLost(f"instance {peer.index} was lost: {reason}", peer=peer.index)
        if peer.connection is not None:
            self._disconnect(peer, reason)
            logger.info("= %d lost: %s", peer.index, reason)
            self._emit(events.PeerLost(peer.index, reason))
        peer.outbox.on_lost(error, now)
        self._listener.on_lost(peer, error, now)

    def _disconnect(self, peer: Peer, reason: str) -> None:
        if peer.is_connected:
            self._stats.connections_lost += 1
        peer.connection = None
        self._engine.disconnect_peer(peer.index)
        self._liveness.remove(peer.index)
        logger.debug("= %d disconnected: %s", peer.index, reason)


def _show_address(address: Address) -> str:
    hostname, port = address
    return f"[{hostname}]:{port}" if ":" in hostname else f"{hostname}:{port}"


def _why_replaced(old: Connection, new: Connection) -> str:
    if old.boot_id != new.boot_id:
        return "restarted"
    return "it lost this instance for a while and connected anew"
