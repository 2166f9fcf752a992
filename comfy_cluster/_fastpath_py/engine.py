"""The packet engine in pure Python: the definition that the compiled one must match, byte for byte.

It routes packets between peers, buffers and the layer above. No socket, no clock: packets and
`now` (monotonic seconds) come in, packets and events go out. Any thread may call any method; one
lock makes each call whole.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator

from .buffers import IncomingBuffer, OutgoingBuffer, check_layout
from .events import (
    COUNTERS,
    EVENT_HELLO,
    EVENT_INCOMING_COMPLETE,
    EVENT_MESSAGE,
    EVENT_OUTGOING_ACKED,
    EVENT_PACKET_SIZE,
    EVENT_STUN,
)
from .packet import (
    CHUNK_HEADER_SIZE,
    HEADER_SIZE,
    KIND_CHUNK,
    KIND_HELLO,
    KIND_MESSAGE,
    KIND_PROBE,
    KIND_SACK,
    MAX_PACKET_SIZE,
    MESSAGE_PAYLOAD_LIMIT,
    MIN_PACKET_SIZE,
    check_message_size,
    chunk_size_for,
    open_packet,
    pack_chunk_header,
    pack_header,
    pack_sack,
    parse_chunk_header,
    parse_header,
    seal_packet,
)
from .peer import (
    MAX_ACK_DELAY,
    MESSAGE_QUEUE_LIMIT,
    MINIMUM_RECEIVE_WINDOW,
    NEVER,
    PeerFlow,
    Strangers,
)
from .stun import STUN_QUEUE_LIMIT, StunTransactions

Address = tuple[str, int]

EVENT_BYTES_LIMIT = 4 << 20  # bytes of messages not yet taken; more are dropped, and come again
MAX_PEERS = 4096
TURN_PACKETS = 32  # chunks to one peer before the next peer has its turn


class PacketEngine:
    """All flows of one instance. See `_fastpath.pyi` for the contract."""

    def __init__(
        self,
        *,
        burst_size: int = 174,
        receive_capacity: int = 1 << 20,
        keepalive_interval: float = 0.0,
        strangers_per_second: float = 0.0,
    ) -> None:
        self._lock = threading.Lock()
        self._burst_size = burst_size
        self._receive_capacity = receive_capacity
        self._keepalive_interval = keepalive_interval
        self._strangers = Strangers(strangers_per_second)
        self._stun = StunTransactions()
        self._addresses: set[Address] = set()
        self._peers: dict[int, PeerFlow] = {}
        self._sessions: dict[int, PeerFlow] = {}
        self._outgoing: dict[int, tuple[PeerFlow, OutgoingBuffer]] = {}
        self._incoming: dict[int, IncomingBuffer] = {}
        self._hellos: deque[tuple[Address, bytes]] = deque()
        self._events: list[tuple[object, ...]] = []
        self._event_bytes = 0
        self._turn_peer = 0
        self._turn_left = TURN_PACKETS
        self._counters = dict.fromkeys(COUNTERS, 0)

    # Peers

    def allow_address(self, address: Address) -> None:
        with self._lock:
            self._addresses.add(address)

    def disallow_address(self, address: Address) -> None:
        with self._lock:
            self._addresses.discard(address)

    def connect_peer(
        self,
        peer: int,
        address: Address,
        *,
        local_session: int,
        remote_session: int,
        packet_size: int = MIN_PACKET_SIZE,
        largest_packet_size: int = 0,
        now: float,
    ) -> None:
        if not 0 <= peer < MAX_PEERS:
            raise ValueError(f"a peer index must be 0 to {MAX_PEERS - 1}, not {peer}")
        if not MIN_PACKET_SIZE <= packet_size <= MAX_PACKET_SIZE:
            raise ValueError(
                f"packet_size must be {MIN_PACKET_SIZE} to {MAX_PACKET_SIZE}, not {packet_size}"
            )
        if largest_packet_size > MAX_PACKET_SIZE:
            raise ValueError(
                f"largest_packet_size is at most {MAX_PACKET_SIZE}, not {largest_packet_size}"
            )
        with self._lock:
            owner = self._sessions.get(local_session)
            if owner is not None and owner.index != peer:
                raise ValueError(f"session {local_session} belongs to peer {owner.index}")
            self._disconnect(peer)
            flow = PeerFlow(
                peer,
                address,
                local_session=local_session,
                remote_session=remote_session,
                packet_size=packet_size,
                largest_packet_size=largest_packet_size,
                keepalive_interval=self._keepalive_interval,
                now=now,
            )
            self._peers[peer] = flow
            self._sessions[local_session] = flow

    def disconnect_peer(self, peer: int) -> None:
        with self._lock:
            self._disconnect(peer)

    def _disconnect(self, peer: int) -> None:
        flow = self._peers.pop(peer, None)
        if flow is None:
            return
        del self._sessions[flow.local_session]
        for buffer_id, (owner, buffer) in list(self._outgoing.items()):
            if owner is flow:
                self._forget_relay(buffer_id)
                buffer.close()
                del self._outgoing[buffer_id]
        for buffer_id, incoming in flow.incoming.items():
            incoming.close()
            del self._incoming[buffer_id]

    # Messages

    def send_hello(self, address: Address, payload: bytes) -> None:
        check_message_size(payload)
        with self._lock:
            if len(self._hellos) < MESSAGE_QUEUE_LIMIT:
                self._hellos.append((address, payload))

    def send_message(self, peer: int, payload: bytes) -> bool:
        check_message_size(payload)
        with self._lock:
            flow = self._peers.get(peer)
            if flow is None or len(flow.messages) >= MESSAGE_QUEUE_LIMIT:
                return False
            flow.messages.append(payload)
            return True

    def expect_stun(self, transaction_id: bytes) -> None:
        with self._lock:
            self._stun.expect(transaction_id)

    def forget_stun(self, transaction_id: bytes) -> None:
        with self._lock:
            self._stun.forget(transaction_id)

    # Buffers

    def open_outgoing(
        self, peer: int, buffer_id: int, prefix: bytes, body: object, *, chunk_size: int
    ) -> None:
        view = memoryview(body).cast("B")  # type: ignore[arg-type]
        with self._lock:
            flow = self._peer(peer)
            check_layout(len(prefix) + len(view), chunk_size, chunk_size_for(flow.packet_size))
            if buffer_id in self._outgoing:
                raise ValueError(f"buffer {buffer_id} is being sent already")
            buffer = OutgoingBuffer(buffer_id, bytes(prefix), view, chunk_size)
            self._outgoing[buffer_id] = (flow, buffer)
            if buffer.chunk_count:
                flow.sending.append(buffer)
            else:
                self._events.append((EVENT_OUTGOING_ACKED, peer, buffer_id))

    def open_relay(self, peer: int, buffer_id: int, source_id: int, *, chunk_size: int) -> None:
        with self._lock:
            flow = self._peer(peer)
            source = self._incoming.get(source_id)
            if source is None:
                raise ValueError(f"buffer {source_id} is not being received")
            check_layout(source.size, chunk_size, chunk_size_for(flow.packet_size))
            if buffer_id in self._outgoing:
                raise ValueError(f"buffer {buffer_id} is being sent already")
            buffer = OutgoingBuffer(buffer_id, b"", source.memory, chunk_size)
            self._outgoing[buffer_id] = (flow, buffer)
            if not buffer.chunk_count:
                self._events.append((EVENT_OUTGOING_ACKED, peer, buffer_id))
                return
            buffer.available_chunks = 0
            source.relays[buffer_id] = (flow, buffer)
            flow.on_source_progress(buffer, source.contiguous_size())

    def close_outgoing(self, buffer_id: int) -> None:
        with self._lock:
            flow, buffer = self._outgoing.pop(buffer_id, (None, None))
            if flow is not None and buffer is not None:
                self._forget_relay(buffer_id)
                flow.close_outgoing(buffer)

    def _forget_relay(self, buffer_id: int) -> None:
        for source in self._incoming.values():
            source.relays.pop(buffer_id, None)

    def open_incoming(
        self, peer: int, buffer_id: int, destination: object, *, size: int, chunk_size: int
    ) -> None:
        view = memoryview(destination).cast("B")  # type: ignore[arg-type]
        if view.readonly or len(view) < size:
            raise ValueError(f"the destination of {size} bytes is read-only or too small")
        with self._lock:
            flow = self._peer(peer)
            check_layout(size, chunk_size, chunk_size_for(MAX_PACKET_SIZE))
            if buffer_id in self._incoming:
                raise ValueError(f"buffer {buffer_id} is being received already")
            buffer = IncomingBuffer(peer, buffer_id, view, size=size, chunk_size=chunk_size)
            self._incoming[buffer_id] = buffer
            flow.incoming[buffer_id] = buffer
            if buffer.is_complete:
                self._events.append((EVENT_INCOMING_COMPLETE, peer, buffer_id))

    def close_incoming(self, buffer_id: int) -> None:
        with self._lock:
            buffer = self._incoming.pop(buffer_id, None)
            if buffer is not None:
                buffer.close()
                del self._peers[buffer.peer].incoming[buffer_id]

    def _peer(self, peer: int) -> PeerFlow:
        flow = self._peers.get(peer)
        if flow is None:
            raise ValueError(f"peer {peer} is not connected")
        return flow

    # Packets in

    def receive_packet(self, packet: bytes, address: Address, now: float) -> None:
        with self._lock:
            self._receive(packet, address, now)

    def _receive(self, packet: bytes, address: Address, now: float) -> None:
        header = parse_header(packet)
        if header is None:
            self._receive_foreign(packet, address)
            return
        kind, session, counter = header
        if kind == KIND_HELLO:
            self._receive_hello(session, packet, address, now)
            return
        flow = self._sessions.get(session)
        if flow is None:
            self._counters["unknown_session"] += 1
        elif flow.address != address:
            self._counters["wrong_address"] += 1
        elif not flow.history.is_new(counter):
            self._counters["replayed"] += 1
        else:
            payload = open_packet(packet)
            if payload is None or not self._receive_from(flow, kind, counter, payload, now):
                return
            flow.last_received_at = now
            flow.packets_received += 1
            flow.bytes_received += len(packet)

    def _receive_foreign(self, packet: bytes, address: Address) -> None:
        if not self._stun.is_expected(packet):
            self._counters["malformed"] += 1
        elif self._stun.waiting == STUN_QUEUE_LIMIT:
            self._counters["stun_dropped"] += 1
        else:
            event = (EVENT_STUN, address, packet)
            self._stun.waiting += self._add_message_event(event, HEADER_SIZE + len(packet))

    def _receive_hello(self, session: int, packet: bytes, address: Address, now: float) -> None:
        if session != 0 or len(packet) > MIN_PACKET_SIZE:
            self._counters["malformed"] += 1
        elif address not in self._addresses and not self._strangers.are_heard(now):
            self._counters["unknown_address"] += 1
        else:
            self._add_message_event((EVENT_HELLO, address, packet[HEADER_SIZE:]), len(packet))

    def _receive_from(
        self, flow: PeerFlow, kind: int, counter: int, payload: bytes, now: float
    ) -> bool:
        if kind == KIND_CHUNK:
            return self._receive_chunk(flow, counter, payload, now)
        if kind == KIND_SACK:
            return self._receive_sack(flow, counter, payload, now)
        if kind == KIND_PROBE:
            flow.on_counter_accepted(counter, now)
            flow.sack_at = now
            return True
        if len(payload) > MESSAGE_PAYLOAD_LIMIT:
            self._counters["malformed"] += 1
            return False
        event = (EVENT_MESSAGE, flow.index, payload)
        if not self._add_message_event(event, HEADER_SIZE + len(payload)):
            return False
        flow.on_counter_accepted(counter, now)
        return True

    def _add_message_event(self, event: tuple[object, ...], size: int) -> bool:
        if self._event_bytes + size > EVENT_BYTES_LIMIT:
            self._counters["messages_dropped"] += 1
            return False
        self._event_bytes += size
        self._events.append(event)
        return True

    def _receive_chunk(self, flow: PeerFlow, counter: int, payload: bytes, now: float) -> bool:
        header = parse_chunk_header(payload)
        if header is None:
            self._counters["malformed"] += 1
            return False
        buffer_id, chunk_index, total_chunks, chunk_size = header
        buffer = flow.incoming.get(buffer_id)
        if buffer is None:
            self._counters["unknown_buffer"] += 1
            return False
        data = payload[CHUNK_HEADER_SIZE:]
        placed = buffer.place(chunk_index, total_chunks, chunk_size, data)
        if placed < 0:
            self._counters["bad_chunk"] += 1
            return False
        if placed:
            flow.chunks_received += 1
            if buffer.relays:
                size = buffer.contiguous_size()
                for relay_flow, relay in buffer.relays.values():
                    relay_flow.on_source_progress(relay, size)
            if buffer.is_complete:
                self._events.append((EVENT_INCOMING_COMPLETE, flow.index, buffer_id))
        else:
            flow.chunks_duplicate += 1
        flow.on_chunk_accepted(counter, len(data), is_complete=buffer.is_complete, now=now)
        return True

    def _receive_sack(self, flow: PeerFlow, counter: int, payload: bytes, now: float) -> bool:
        packet_size = flow.packet_size
        completed = flow.on_sack(counter, payload, now)
        if completed is None:
            self._counters["bad_sack"] += 1
            return False
        for buffer in completed:
            self._events.append((EVENT_OUTGOING_ACKED, flow.index, buffer.buffer_id))
        self._note_packet_size(flow, packet_size)
        flow.on_counter_accepted(counter, now)
        return True

    def _note_packet_size(self, flow: PeerFlow, before: int) -> None:
        if flow.packet_size == before:
            return
        self._events.append((EVENT_PACKET_SIZE, flow.index, flow.packet_size))
        largest_chunk = chunk_size_for(flow.packet_size)
        for owner, buffer in self._outgoing.values():
            if owner is flow and buffer.chunk_size > largest_chunk:
                flow.silence(buffer)

    # Packets out

    def packets_to_send(self, now: float, *, limit: int = 0) -> list[tuple[Address, bytes]]:
        packets: list[tuple[Address, bytes]] = []
        with self._lock:
            for flow in self._flows():
                packet_size = flow.packet_size
                flow.on_timer(now)
                self._note_packet_size(flow, packet_size)
            generator = self._packets(now)
            for packet in generator:
                packets.append(packet)
                if len(packets) == (limit or self._burst_size):
                    break
        return packets

    def _flows(self) -> Iterator[PeerFlow]:
        return (self._peers[peer] for peer in sorted(self._peers))

    def _packets(self, now: float) -> Iterator[tuple[Address, bytes]]:
        while self._hellos:
            address, payload = self._hellos.popleft()
            yield address, pack_header(KIND_HELLO, 0, 0) + payload
        for flow in self._flows():
            while flow.messages:
                counter = flow.take_counter()
                yield self._seal(flow, KIND_MESSAGE, counter, flow.next_message(), now)
        for flow in self._flows():
            if flow.mtu.probe_due_at() <= now:
                yield self._mtu_probe(flow, now)
        for flow in self._flows():
            if flow.sack_due_at <= now:
                yield self._seal(flow, KIND_SACK, flow.take_counter(), self._sack(flow, now), now)
        while (turn := self._next_turn(now)) is not None:
            yield self._chunk_packet(turn, now)

    def _seal(
        self, flow: PeerFlow, kind: int, counter: int, payload: bytes, now: float
    ) -> tuple[Address, bytes]:
        packet = seal_packet(pack_header(kind, flow.remote_session, counter) + payload)
        flow.on_packet_sent(len(packet), now)
        return flow.address, packet

    def _mtu_probe(self, flow: PeerFlow, now: float) -> tuple[Address, bytes]:
        counter = flow.take_counter()
        timeout = flow.rtt.retransmit_timeout + MAX_ACK_DELAY
        padding = bytes(flow.mtu.probe_size - HEADER_SIZE)
        flow.mtu.on_probe_sent(counter, timeout, now)
        return self._seal(flow, KIND_PROBE, counter, padding, now)

    def _sack(self, flow: PeerFlow, now: float) -> bytes:
        delay_us = min(max(int((now - flow.largest_received_at) * 1e6), 0), 0xFFFFFFFF)
        flow.on_sack_sent(now)
        return pack_sack(
            flow.history.largest, delay_us, self._receive_window(), flow.history.sack_words()
        )

    def _receive_window(self) -> int:
        """Share what the socket's buffer holds among the peers that send to it now."""
        senders = sum(flow.has_incomplete_incoming for flow in self._peers.values())
        share = max(self._receive_capacity // max(senders, 1), MINIMUM_RECEIVE_WINDOW)
        return min(share, 0xFFFFFFFF)

    def _next_turn(self, now: float) -> PeerFlow | None:
        """Return the peer whose chunk goes next: each in turn, `TURN_PACKETS` at a time."""
        flow = self._peers.get(self._turn_peer)
        if flow is not None and self._turn_left > 0 and flow.is_ready(now):
            return flow
        if flow is not None:
            flow.end_turn()
        order = sorted(self._peers)
        first_after = next((n for n, peer in enumerate(order) if peer > self._turn_peer), 0)
        for peer in order[first_after:] + order[:first_after]:
            if self._peers[peer].is_ready(now):
                self._turn_peer = peer
                self._turn_left = TURN_PACKETS
                return self._peers[peer]
        return None

    def _chunk_packet(self, flow: PeerFlow, now: float) -> tuple[Address, bytes]:
        self._turn_left -= 1
        buffer, chunk_index = flow.next_chunk()
        counter = flow.take_counter()
        header = pack_chunk_header(
            buffer.buffer_id, chunk_index, buffer.chunk_count, buffer.chunk_size
        )
        packet = self._seal(flow, KIND_CHUNK, counter, header + buffer.chunk(chunk_index), now)
        flow.on_chunk_sent(counter, buffer, chunk_index, size=len(packet[1]), now=now)
        return packet

    def next_timer(self) -> float | None:
        """Return when `packets_to_send` has something to do; 0.0 for at once, None for never."""
        with self._lock:
            if self._hellos or any(flow.messages for flow in self._peers.values()):
                return 0.0
            due = min((flow.due_at for flow in self._peers.values()), default=NEVER)
        return None if due == NEVER else due

    # Events and numbers

    def take_events(self) -> list[tuple[object, ...]]:
        with self._lock:
            events = self._events
            self._events = []
            self._event_bytes = 0
            self._stun.waiting = 0
        return events

    def peer_stats(self, peer: int) -> dict[str, float | int]:
        with self._lock:
            return self._peer(peer).numbers()

    def stats(self) -> dict[str, int]:
        with self._lock:
            return dict(self._counters)
