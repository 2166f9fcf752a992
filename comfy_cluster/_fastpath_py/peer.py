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
from .packet import parse_sack
from .path import (
    PACING_GAIN,
    PACING_GAIN_SLOW_START,
    PERSISTENT_PROBES,
    CongestionController,
    Pacer,
    RttEstimator,
)
from .sent import LOST, MAX_CAPACITY, SentEntry, SentPackets

MAX_ACK_DELAY = 0.001  # seconds that a SACK may be held back
ACK_DELAY_LIMIT = 0.025  # seconds of claimed delay that are believed; RFC 9000 section 18.2
SACK_EVERY = 2  # chunks that force a SACK; RFC 9000 section 13.2.2
MAX_PROBE_INTERVAL = 1.0  # seconds; a peer that was stopped is found awake within this time
PROBE_PACKETS = 2  # RFC 9002 section 6.2.4
INITIAL_RECEIVE_WINDOW = 262_144  # bytes, until the first SACK tells
MINIMUM_RECEIVE_WINDOW = 65_536  # bytes; less could not hold one packet of the largest size
KEEPALIVE_LIMIT = 60  # keepalives without a message: then the process behind the engine hangs
MESSAGE_QUEUE_LIMIT = 1024  # messages waiting for the socket; control traffic is far below this

NEVER = float("inf")


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
        keepalive_interval: float,
        now: float,
    ) -> None:
        self.index = index
        self.address = address
        self.local_session = local_session
        self.remote_session = remote_session
        self.packet_size = packet_size
        self.rtt = RttEstimator()
        self.congestion = CongestionController(packet_size)
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
        self._chunks_since_sack = 0
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

    # Receiving chunks

    def on_chunk_accepted(self, counter: int, *, is_complete: bool, now: float) -> None:
        """Note that a chunk was placed, and decide when to tell the peer."""
        in_order = counter == self.history.largest + 1
        self.on_counter_accepted(counter, now)
        self._chunks_since_sack += 1
        if is_complete or not in_order or self._chunks_since_sack >= SACK_EVERY:
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
        self.sacks_sent += 1

    @property
    def has_incomplete_incoming(self) -> bool:
        return any(not buffer.is_complete for buffer in self.incoming.values())

    # Sending chunks

    @property
    def window(self) -> int:
        return min(self.congestion.window, self.receive_window)

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

    def refill_pacer(self, now: float) -> None:
        if not self.rtt.has_sample:
            self.pacer.refill(now, 0.0)
            return
        gain = PACING_GAIN_SLOW_START if self.congestion.is_slow_start else PACING_GAIN
        self.pacer.refill(now, gain * self.congestion.window / self.rtt.smoothed)

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
        """Let the next buffer have its share."""
        if len(self.sending) > 1:
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
        if newest is not None:  # called lost or not, else a path that became slow is never learned
            ack_delay = min(ack_delay_us * 1e-6, ACK_DELAY_LIMIT)
            self.rtt.on_sample(now - newest.sent_at, ack_delay)
        completed = self._acknowledge(largest, words, now)
        self._detect_losses(now)
        self._set_probe_timer()
        return completed

    def _acknowledge(self, largest: int, words: list[int], now: float) -> list[OutgoingBuffer]:
        completed: list[OutgoingBuffer] = []
        bytes_in_flight = self.sent.bytes_in_flight
        base = 64 * (largest // 64 - len(words) + 1)
        for number, word in enumerate(words):
            while word:
                bit = word & -word
                word ^= bit
                entry = self.sent.get(base + 64 * number + bit.bit_length() - 1)
                if entry is not None:
                    self._on_packet_acked(entry, bytes_in_flight, completed, now)
        self._largest_acked = max(self._largest_acked, largest)
        return completed

    def _on_packet_acked(
        self, entry: SentEntry, bytes_in_flight: int, completed: list[OutgoingBuffer], now: float
    ) -> None:
        if self._probe_count >= PERSISTENT_PROBES:
            self.congestion.on_path_back(now)
        self._probe_count = 0
        if entry.state == LOST:  # it was only late: allow that much more from now on
            self.spurious_losses += 1
            self._reordering = max(self._reordering, now - entry.sent_at - self.rtt.smoothed)
        else:
            self.congestion.on_packet_acked(entry.size, entry.sent_at, bytes_in_flight)
        self.sent.on_acked(entry)
        if entry.buffer.acked.add(entry.chunk_index) and entry.buffer.acked.is_complete:
            completed.append(entry.buffer)

    # Losses and timers

    def on_timer(self, now: float) -> None:
        """Do what is due at `now`."""
        if now >= self.loss_at:
            self._detect_losses(now)
            self._set_probe_timer()
        elif now >= self.probe_at:
            self._probe()

    def _detect_losses(self, now: float) -> None:
        self.loss_at = NEVER
        loss_delay = self.rtt.loss_delay(self._reordering)
        newest_lost_at = -1.0
        while True:
            entry = self.sent.first_in_flight()
            if entry is None or entry.counter >= self._largest_acked:
                break
            if entry.sent_at + loss_delay > now:
                self.loss_at = entry.sent_at + loss_delay
                break
            newest_lost_at = entry.sent_at
            self._on_packet_lost(entry)
        if newest_lost_at >= 0.0:
            self.congestion.on_packets_lost(newest_lost_at, now)

    def _on_packet_lost(self, entry: SentEntry) -> None:
        self.packets_lost += 1
        self.sent.on_lost(entry)
        if entry.chunk_index not in entry.buffer.acked:
            self.lost.append((entry.buffer, entry.chunk_index))

    def _probe(self) -> None:
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
        self._set_probe_timer()

    def _set_probe_timer(self) -> None:
        if self.sent.bytes_in_flight == 0 or self.loss_at != NEVER:
            self.probe_at = NEVER
            return
        interval = self.rtt.retransmit_timeout + MAX_ACK_DELAY
        interval = min(interval * float(1 << min(self._probe_count, 16)), MAX_PROBE_INTERVAL)
        self.probe_at = self._last_chunk_sent_at + max(interval, self.rtt.retransmit_timeout)

    def close_outgoing(self, buffer: OutgoingBuffer) -> None:
        """Forget a buffer: nothing of it is sent or counted as in flight from now on."""
        buffer.close()
        if buffer in self.sending:
            self.sending.remove(buffer)
        self.lost = deque(item for item in self.lost if item[0] is not buffer)
        self.sent.forget_buffer(buffer)
        self._set_probe_timer()
