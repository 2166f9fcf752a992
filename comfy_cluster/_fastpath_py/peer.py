"""The flow of packets between this instance and one peer, in both directions.

How it works. Every packet to the peer takes the next counter. The peer reports in SACKs which
counters arrived. A packet with a smaller counter than one that arrived is lost once `loss_delay`
has passed since it was sent; its chunk is sent again under a new counter. When nothing is reported
at all, the two oldest packets are sent again after the probe timeout, which doubles each time; at
the third time all of them are.
Chunks leave while the flight is under the congestion window and the receive window, and the pacer
agrees. RFC 9002 is the model; docs/protocol.md has the rules.
"""

from __future__ import annotations

from collections import deque

from .bitmap import ReceiveHistory
from .buffers import IncomingBuffer, OutgoingBuffer
from .congestion import CongestionController
from .mtu import PathMtu
from .packet import parse_sack
from .path import Pacer, RttEstimator
from .sent import LOST, MAX_CAPACITY, SentEntry, SentPackets

MAX_ACK_DELAY = 0.001  # seconds that a SACK may be held back
ACK_DELAY_LIMIT = 0.025  # seconds of claimed delay that are believed; RFC 9000 section 18.2
SACK_CHUNKS = 2  # chunks that force a SACK; RFC 9000 section 13.2.2
SACK_BYTES = 14_400  # and how much they hold: ten packets on Ethernet, two jumbo frames
SACK_EARLY_CHUNKS = 100  # until so many have come, the bytes do not matter: the start is short
MAX_PROBE_INTERVAL = 1.0  # seconds; a peer that was stopped is found awake within this time
PROBE_PACKETS = 2  # RFC 9002 section 6.2.4
PERSISTENT_PROBES = 3  # probes without an answer that collapse the window; RFC 9002 section 7.6
INITIAL_RECEIVE_WINDOW = 262_144  # bytes, until the first SACK tells
MINIMUM_RECEIVE_WINDOW = 65_536  # bytes; less could not hold one packet of the largest size
KEEPALIVE_LIMIT = 60  # keepalives without a message: then the process behind the engine hangs
MESSAGE_QUEUE_LIMIT = 1024  # messages waiting for the socket; control traffic is far below this

NEVER = float("inf")

PEER_NUMBERS = (
    "packet_size",
    "window",
    "receive_window",
    "packets_sent",
    "packets_received",
    "bytes_sent",
    "bytes_received",
    "chunks_sent",
    "chunks_retransmitted",
    "bytes_retransmitted",
    "chunks_received",
    "chunks_duplicate",
    "packets_lost",
    "spurious_losses",
    "probes_sent",
    "sacks_sent",
    "sacks_received",
    "last_received_at",
)


class PeerFlow:
    """One peer's counters, windows, timers and queues."""

    def __init__(
        self,
        index: int,
        address: tuple[str, int],
        *,
        local_session: int,
        remote_session: int,
        packet_size: int,
        largest_packet_size: int,
        keepalive_interval: float,
        now: float,
    ) -> None:
        self.index = index
        self.address = address
        self.local_session = local_session
        self.remote_session = remote_session
        self.mtu = PathMtu(packet_size, largest_packet_size, now)
        self.rtt = RttEstimator()
        self.congestion = CongestionController(packet_size, index)
        self.pacer = Pacer(packet_size)
        self.sent = SentPackets()
        self.history = ReceiveHistory()
        self.receive_window = INITIAL_RECEIVE_WINDOW
        self.messages: deque[bytes] = deque()
        self.sending: deque[OutgoingBuffer] = deque()
        self.lost: deque[tuple[OutgoingBuffer, int]] = deque()
        self.incoming: dict[int, IncomingBuffer] = {}
        self.loss_at = NEVER
        self.probe_at = NEVER
        self.sack_at = NEVER
        self.largest_received_at = 0.0
        self._keepalive_interval = keepalive_interval
        self._keepalives_left = KEEPALIVE_LIMIT
        self._last_sent_at = now
        self._reordering = 0.0
        self._probe_count = 0
        self._last_chunk_sent_at = 0.0
        self._largest_acked = -1
        self._largest_sack = -1
        self._newly_acked = 0
        self._newest_sent_at = 0.0
        self._chunks_since_sack = 0
        self._bytes_since_sack = 0
        self.last_received_at = now
        self.packets_sent = 0
        self.packets_received = 0
        self.bytes_sent = 0
        self.bytes_received = 0
        self.chunks_sent = 0
        self.chunks_retransmitted = 0
        self.bytes_retransmitted = 0
        self.chunks_received = 0
        self.chunks_duplicate = 0
        self.packets_lost = 0
        self.spurious_losses = 0
        self.probes_sent = 0
        self.sacks_sent = 0
        self.sacks_received = 0

    @property
    def packet_size(self) -> int:
        """Bytes of UDP payload that the path is known to carry."""
        return self.mtu.packet_size

    # Receiving chunks

    def on_chunk_accepted(self, counter: int, size: int, *, is_complete: bool, now: float) -> None:
        """Note that a chunk was placed, and decide when to tell the peer."""
        in_order = counter == self.history.largest + 1
        self.on_counter_accepted(counter, now)
        self._chunks_since_sack += 1
        self._bytes_since_sack += size
        is_enough = self._chunks_since_sack >= SACK_CHUNKS and (
            self._bytes_since_sack >= SACK_BYTES or self.chunks_received < SACK_EARLY_CHUNKS
        )
        if is_complete or not in_order or is_enough:
            self.sack_at = now
        else:
            self.sack_at = min(self.sack_at, now + MAX_ACK_DELAY)

    def on_counter_accepted(self, counter: int, now: float) -> None:
        if counter > self.history.largest:
            self.largest_received_at = now
        self.history.add(counter)

    @property
    def sack_due_at(self) -> float:
        """When a SACK must go: something was received, or nothing was sent for an interval."""
        if not self._keepalive_interval or not self._keepalives_left or self.history.largest < 0:
            return self.sack_at
        return min(self.sack_at, self._last_sent_at + self._keepalive_interval)

    def on_sack_sent(self, now: float) -> None:
        if self.sack_at > now:
            self._keepalives_left -= 1
        self.sack_at = NEVER
        self._chunks_since_sack = 0
        self._bytes_since_sack = 0
        self.sacks_sent += 1

    @property
    def has_incomplete_incoming(self) -> bool:
        return any(not buffer.is_complete for buffer in self.incoming.values())

    # Sending chunks

    @property
    def window(self) -> int:
        """Bytes that may be in flight. What is still under way fills no buffer of the receiver."""
        return min(self.congestion.window, self.receive_window + self.congestion.underway)

    @property
    def can_send_chunk(self) -> bool:
        """Whether the windows, not the pacer, let one more packet go."""
        flight = self.sent.bytes_in_flight
        return self.sent.has_room and (flight == 0 or flight + self.packet_size <= self.window)

    @property
    def has_chunks(self) -> bool:
        """Whether anything waits to be sent; drops what was acknowledged while it waited."""
        while self.lost:
            buffer, chunk_index = self.lost[0]
            if not buffer.is_closed and chunk_index not in buffer.acked:
                return True
            self.lost.popleft()
        return bool(self.sending)

    def is_ready(self, now: float) -> bool:
        """Whether a chunk may leave now."""
        if not self.has_chunks or not self.can_send_chunk:
            return False
        self.refill_pacer(now)
        return self.pacer.ready_at <= now

    @property
    def due_at(self) -> float:
        """When this flow has something to do, messages left aside."""
        due = min(self.sack_due_at, self.loss_at, self.probe_at, self.mtu.due_at)
        if self.has_chunks and self.can_send_chunk:
            due = min(due, self.pacer.ready_at)
        return due

    def refill_pacer(self, now: float) -> None:
        if not self.rtt.has_sample:
            self.pacer.refill(now, 0.0)
            return
        self.pacer.refill(now, self.congestion.pacing_rate(self.rtt.smoothed))

    def next_chunk(self) -> tuple[OutgoingBuffer, int]:
        """Take the chunk that goes next; `has_chunks` holds. Lost ones come first."""
        if self.lost:
            buffer, chunk_index = self.lost.popleft()
            self.chunks_retransmitted += 1
            self.bytes_retransmitted += buffer.chunk_length(chunk_index)
            return buffer, chunk_index
        buffer = self.sending[0]
        chunk_index = buffer.next_chunk
        buffer.next_chunk += 1
        if not buffer.has_unsent:
            self.sending.popleft()
        return buffer, chunk_index

    def on_source_progress(self, buffer: OutgoingBuffer, size: int) -> None:
        """The first `size` bytes of what `buffer` relays have arrived."""
        was_waiting = not buffer.has_unsent
        buffer.set_available(size)
        if was_waiting and buffer.has_unsent:
            self.sending.append(buffer)

    def end_turn(self) -> None:
        """Let the next buffer have its share, if one that waits has less left to send."""
        first = self.sending[0].bytes_left if self.sending else 0
        if any(buffer.bytes_left < first for buffer in self.sending):
            self.sending.rotate(-1)

    def next_message(self) -> bytes:
        """Take the message that goes next: a sign of the process, not of its engine alone."""
        self._keepalives_left = KEEPALIVE_LIMIT
        return self.messages.popleft()

    def on_packet_sent(self, size: int, now: float) -> None:
        self._last_sent_at = now
        self.packets_sent += 1
        self.bytes_sent += size

    def take_counter(self) -> int:
        """Return the counter of the next packet to this peer."""
        if self.sent.is_full:  # only after thousands of unanswered packets: give up on the oldest
            entry = self.sent.first_in_flight()
            assert entry is not None
            self._on_packet_lost(entry)
        return self.sent.take_counter()

    def on_chunk_sent(
        self, counter: int, buffer: OutgoingBuffer, chunk_index: int, *, size: int, now: float
    ) -> None:
        if self.sent.bytes_in_flight == 0:
            self.congestion.on_restart(now)
        self.sent.put(SentEntry(counter, buffer, chunk_index, size=size, sent_at=now))
        self.pacer.on_packet_sent(size)
        self.chunks_sent += 1
        self._last_chunk_sent_at = now
        self._set_probe_timer()

    # SACKs from the peer

    def on_sack(self, counter: int, payload: bytes, now: float) -> list[OutgoingBuffer] | None:
        """Take a SACK. Return the buffers it completed, None when the SACK is not valid."""
        sack = parse_sack(payload)
        if sack is None or sack[0] >= self.sent.next_counter:
            return None
        largest, ack_delay_us, receive_window, words = sack
        self.sacks_received += 1
        if counter > self._largest_sack:
            self._largest_sack = counter
            self.receive_window = max(receive_window, MINIMUM_RECEIVE_WINDOW)
        newest = self.sent.get(largest)
        ack_delay = min(ack_delay_us * 1e-6, ACK_DELAY_LIMIT)
        rtt_sample = 0.0
        if newest is not None:  # called lost or not, else a path that became slow is never learned
            self.rtt.on_sample(now - newest.sent_at, ack_delay)
            rtt_sample = self.rtt.latest
        elif largest == self.mtu.counter:
            self.rtt.on_sample(now - self.mtu.sent_at, ack_delay)
        self._newest_sent_at = 0.0
        self._newly_acked = 0
        completed = self._acknowledge(largest, words, now)
        if not self.has_chunks:
            self.congestion.on_app_limited()
        self.congestion.on_sack(
            self._newly_acked, self._newest_sent_at, rtt_sample, self.sent.bytes_in_flight, now
        )
        self._detect_losses(now)
        self._set_probe_timer()
        return completed

    def _acknowledge(self, largest: int, words: list[int], now: float) -> list[OutgoingBuffer]:
        completed: list[OutgoingBuffer] = []
        base = 64 * (largest // 64 - len(words) + 1)
        for number, word in enumerate(words):
            while word:
                bit = word & -word
                word ^= bit
                counter = base + 64 * number + bit.bit_length() - 1
                entry = self.sent.get(counter)
                if entry is not None:
                    self._on_packet_acked(entry, completed, now)
                elif counter == self.mtu.counter and self.mtu.on_acked(counter, now):
                    self._on_packet_size_changed()
        self._largest_acked = max(self._largest_acked, largest)
        return completed

    def _on_packet_acked(
        self, entry: SentEntry, completed: list[OutgoingBuffer], now: float
    ) -> None:
        self._probe_count = 0
        self._newly_acked += entry.size
        self._newest_sent_at = max(self._newest_sent_at, entry.sent_at)
        if entry.state == LOST:  # it was only late: allow that much more from now on
            self.spurious_losses += 1
            self._reordering = max(self._reordering, now - entry.sent_at - self.rtt.smoothed)
        self.sent.on_acked(entry)
        if entry.buffer.acked.add(entry.chunk_index) and entry.buffer.acked.is_complete:
            completed.append(entry.buffer)

    # Losses and timers

    def on_timer(self, now: float) -> None:
        """Do what is due at `now`."""
        if self.mtu.on_timer(now):
            self._on_packet_size_changed()
        if now >= self.loss_at:
            self._detect_losses(now)
            self._set_probe_timer()
        elif now >= self.probe_at:
            self._probe(now)

    def _on_packet_size_changed(self) -> None:
        self.congestion.set_packet_size(self.packet_size)
        self.pacer.packet_size = self.packet_size

    def _detect_losses(self, now: float) -> None:
        self.loss_at = NEVER
        loss_delay = self.rtt.loss_delay(self._reordering)
        newest_lost_at = 0.0
        lost = 0
        while True:
            entry = self.sent.first_in_flight()
            if entry is None or entry.counter >= self._largest_acked:
                break
            if entry.sent_at + loss_delay > now:
                self.loss_at = entry.sent_at + loss_delay
                break
            newest_lost_at = entry.sent_at
            lost += entry.size
            self._on_packet_lost(entry)
        if lost:
            self.congestion.on_packets_lost(lost, newest_lost_at, self.rtt.latest, now)

    def _on_packet_lost(self, entry: SentEntry) -> None:
        self.packets_lost += 1
        self.sent.on_lost(entry)
        if entry.chunk_index not in entry.buffer.acked:
            self.lost.append((entry.buffer, entry.chunk_index))

    def _probe(self, now: float) -> None:
        """Send the oldest packets again; after a few such probes count the whole flight as lost.

        Until then nothing says that the path is congested. From then on the window is so small
        that nothing could leave if the flight still counted (cf. RFC 5681 section 3.1).
        """
        self._probe_count += 1
        self.probes_sent += 1
        is_persistent = self._probe_count == PERSISTENT_PROBES
        limit = MAX_CAPACITY if is_persistent else PROBE_PACKETS
        for _ in range(limit):
            entry = self.sent.first_in_flight()
            if entry is None:
                break
            self._on_packet_lost(entry)
        if is_persistent:
            self.congestion.on_persistent_loss()
        if self._probe_count >= PERSISTENT_PROBES:
            self.mtu.verify(now)
        self._set_probe_timer()

    def _set_probe_timer(self) -> None:
        if self.sent.bytes_in_flight == 0 or self.loss_at != NEVER:
            self.probe_at = NEVER
            return
        interval = self.rtt.retransmit_timeout + MAX_ACK_DELAY
        interval = min(interval * float(1 << min(self._probe_count, 16)), MAX_PROBE_INTERVAL)
        self.probe_at = self._last_chunk_sent_at + max(interval, self.rtt.retransmit_timeout)

    def close_outgoing(self, buffer: OutgoingBuffer) -> None:
        """Forget a buffer, and let go of its memory."""
        buffer.close()
        self.silence(buffer)

    def silence(self, buffer: OutgoingBuffer) -> None:
        """Nothing of a buffer is sent or counted as in flight from now on."""
        buffer.next_chunk = buffer.chunk_count
        if buffer in self.sending:
            self.sending.remove(buffer)
        self.lost = deque(item for item in self.lost if item[0] is not buffer)
        self.sent.forget_buffer(buffer)
        self._set_probe_timer()

    def numbers(self) -> dict[str, float | int]:
        """Return what is known of this flow; docs/protocol.md says what each number means."""
        return {name: getattr(self, name) for name in PEER_NUMBERS} | {
            "smoothed_rtt": self.rtt.smoothed,
            "rtt_variance": self.rtt.variance,
            "min_rtt": self.rtt.minimum,
            "congestion_window": self.congestion.window,
            "bandwidth": self.congestion.bandwidth,
            "bytes_in_flight": self.sent.bytes_in_flight,
        }


class Strangers:
    """HELLOs from addresses that are not allowed: so many a second are heard."""

    def __init__(self, per_second: float) -> None:
        self._per_second = per_second
        self._tokens = per_second
        self._counted_at = 0.0

    def are_heard(self, now: float) -> bool:
        """Takes a token, if there is one."""
        earned = max(0.0, (now - self._counted_at) * self._per_second)
        self._counted_at = now
        self._tokens = min(self._tokens + earned, self._per_second)
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True
