"""How much may be in flight on one path, and how fast it may leave.

How it works. A model of the path is kept, as in BBR (draft-cardwell-iccrg-bbr-congestion-control):
the bandwidth is the largest delivery rate of the last half second, or of ten round trips if that is
longer; the round trip is the smallest of the last seconds. The window is twice their product and
a little more. Packets leave at the bandwidth, now and then a little faster, to see whether there is
more, and then a little slower, so that the queue empties. A lost packet alone changes nothing, so a
lossy link stays full.
Who shares a queue with a loss-based sender starves by these rules. Once in a cycle this sender
drains its own part of the queue. When the queue stays filled all the same, or overflows, a window
as in CUBIC (RFC 9438) counts instead, until the queue was seen empty again. How much the round trip
shrinks with a drain tells which share of the queue is this sender's own; it aims at half.

No clock: `now` and samples come in, in seconds; sizes are bytes of UDP payload. The arithmetic
keeps its order in the compiled engine, so that both give the same doubles.
"""

from __future__ import annotations

INITIAL_WINDOW_PACKETS = 10  # RFC 9002 section 7.2
MINIMUM_WINDOW_PACKETS = 4  # RFC 9002 has 2, which cannot show a loss before a probe does
STARTUP_GAIN = 2.885  # 2 / ln 2: the rate doubles each round
PACING_GAIN_STARTUP = 2.0  # of a window that itself grows by what is acknowledged
CYCLE_GAINS = (1.25, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0)
FIRST_CRUISE_PHASE = 2
CRUISE_PHASES = 6
WINDOW_GAIN = 2.0
WINDOW_ALLOWANCE_PACKETS = 10  # SACKs come for several packets at a time
SURPLUS_LIMIT = 0.001  # seconds of the bandwidth, of acknowledgements that come in clumps
SURPLUS_EPOCHS = 5  # as long as a clump is remembered, and once more
BANDWIDTH_EPOCHS = 10
EPOCH_FLOOR = 0.05  # seconds; a process that is kept from running for a while is no slow path
ROUND_FLOOR = 0.01  # seconds; in less SACKs come too unevenly to tell a rate
QUEUE_FLOOR = 0.001  # seconds of queue that keep a path busy while threads wake up
EMPTY_FLOOR = 0.0015  # seconds of queue that count as none: what one burst of the pacer may fill
GROWTH = 1.25  # a rate that grows by less for three rounds fills the path
FLAT_ROUNDS = 3
STARTUP_LOSS = 0.2  # of what a round sent: more is a queue that overflows, not a lossy link
STARTUP_LOSS_PACKETS = 8
MIN_RTT_LIFETIME = 10.0  # seconds
PROBE_RTT_TIME = 0.2  # seconds
PROBE_RTT_GAIN = 0.5
EMPTY_QUEUE_FACTOR = 1.25  # of the smallest round trip
COMPETING_DRAIN_CYCLES = 4  # while competing a drain, which gives way, comes only so often
COMPETING_CYCLES = 2  # without an empty queue: somebody else fills it; and back
LOSS_REDUCTION = 0.7  # RFC 9438 section 4.6
CUBIC_C = 0.4  # RFC 9438 section 5.1
FRIENDLY_GROWTH = 0.53  # packets a round trip: as Reno on average; RFC 9438 section 4.3
COMPETING_PACING_GAIN = 1.25  # RFC 9002 section 7.7
FAIR_SHARE = 0.5  # of a queue that somebody else fills too
FAIR_GROWTH = 2.0  # at most, from one measurement of the share to the next
FAIR_DIVISOR = 4.0  # of what is acknowledged; RFC 9406 section 4.3

STARTUP = 0
DRAIN = 1
CRUISE = 2
PROBE_RTT = 3


class CongestionController:
    """Window and pacing rate of one path."""

    def __init__(self, packet_size: int, phase: int = 0) -> None:
        """`phase`: any number; flows that begin at different ones do not probe together."""
        self.packet_size = packet_size
        self.mode = STARTUP
        self.bandwidth = 0.0
        self.min_rtt = 0.0
        self._window = float(INITIAL_WINDOW_PACKETS * packet_size)
        self._rates = [0.0] * BANDWIDTH_EPOCHS
        self._epoch = 0
        self._epoch_at = 0.0
        self._surplus = 0.0
        self._old_surplus = 0.0
        self._clump_at = 0.0
        self._clump_acked = 0
        self._sack_at = -1.0
        self._round_at = 0.0
        self._round_sent_at = 0.0
        self._round_delivered = 0
        self._round_lost = 0
        self._cycle_min_rtt = 0.0
        self._is_app_limited = False
        self._full_rate = 0.0
        self._full_rate_at = 0.0
        self._flat_rounds = 0
        self._cycle_phase = FIRST_CRUISE_PHASE + phase % CRUISE_PHASES
        self._cycle_at = 0.0
        self._min_rtt_at = 0.0
        self._probe_rtt_ends_at = 0.0
        self._cycle = 0
        self._odd_cycles = 0
        self._odd_window = 0.0
        self._old_min_rtt = 0.0
        self._loss_window = 0.0
        self._loss_maximum = 0.0
        self._loss_at = 0.0
        self._fair_window = 0.0
        self._latest_rtt = 0.0
        self._drain_rtt = 0.0
        self._epoch_rtt = 0.0
        self._old_epoch_rtt = 0.0

    @property
    def window(self) -> int:
        """Bytes that may be in flight."""
        if self.mode == PROBE_RTT:
            return int(self._window)
        window = self._window
        if self._loss_window > 0.0:
            window = max(self._shared_size, self._loss_window)
        if self._is_draining:
            window = min(window, max(self._path_size, self._minimum))
        return int(window)

    @property
    def underway(self) -> int:
        """Bytes that are between the two ends while the path is full, in neither's memory."""
        return int(self.bandwidth * self.min_rtt)

    @property
    def is_startup(self) -> bool:
        return self.mode == STARTUP

    @property
    def is_competing(self) -> bool:
        """Whether somebody else keeps the queue filled."""
        return self._loss_window > 0.0

    def pacing_rate(self, smoothed_rtt: float) -> float:
        """Return bytes a second, given the smoothed round trip in seconds."""
        if self.mode == STARTUP or self.bandwidth == 0.0:
            return PACING_GAIN_STARTUP * self.window / smoothed_rtt
        gain = 1.0
        if self.mode == DRAIN:
            gain = 1.0 / STARTUP_GAIN
        elif self.mode == CRUISE:
            gain = CYCLE_GAINS[self._cycle_phase]
        rate = max(gain * self.bandwidth, self._minimum / smoothed_rtt)
        if self._loss_window > 0.0 and self.mode != PROBE_RTT and not self._is_draining:
            rate = max(rate, COMPETING_PACING_GAIN * self._loss_window / smoothed_rtt)
        return rate

    def set_packet_size(self, packet_size: int) -> None:
        self.packet_size = packet_size
        self._window = max(self._window, self._minimum)

    # What happens

    def on_restart(self, now: float) -> None:
        """Something is sent after nothing was in flight: a pause is no measurement."""
        if now - self._sack_at > ROUND_FLOOR:
            self._begin_round(now, now)
            self._cycle_at = now

    def on_app_limited(self) -> None:
        """There is less to send than the window allows: rates are too small from here on."""
        self._is_app_limited = True

    def on_sack(
        self, acked: int, newest_sent_at: float, rtt: float, bytes_in_flight: int, now: float
    ) -> None:
        """Take a SACK for `acked` bytes, the last of which were sent at `newest_sent_at`.

        `rtt`: the sample that came with it, 0.0 without one. `bytes_in_flight`: after it.
        """
        if acked == 0:
            return
        self._sack_at = now
        self._round_delivered += acked
        if rtt > 0.0:
            self._on_rtt(rtt, bytes_in_flight + acked, now)
        floor = 0.0 if self.mode == STARTUP else ROUND_FLOOR
        if newest_sent_at >= self._round_at and now - self._round_at >= floor:
            self._end_round(newest_sent_at, now)
        self._measure_clump(acked, now)
        self._advance_mode(bytes_in_flight, now)
        self._update_window(acked, bytes_in_flight + acked)
        if self._loss_window > 0.0 and bytes_in_flight + acked >= self._loss_window / 2:
            self._grow_loss_window(acked, now)

    def on_packets_lost(self, lost: int, newest_sent_at: float, rtt: float, now: float) -> None:
        """`lost` bytes are, the last of which were sent at `newest_sent_at`; `rtt`: as above."""
        self._round_lost += lost
        if self.mode == STARTUP and self._overflows:
            self.mode = DRAIN
        if not self._is_empty_queue(rtt):  # the queue overflows
            self._surplus = self._old_surplus = 0.0
            if self.mode == STARTUP:
                self.mode = DRAIN
            if self.mode == CRUISE and self._loss_window == 0.0 and self._is_filled_for_long:
                self._stop_competing()
                self._loss_window = max(min(self._window, self.bandwidth * rtt), self._minimum)
                self._loss_at = 0.0
        if self._loss_window > 0.0 and newest_sent_at > self._loss_at:
            self._loss_maximum = self._loss_window
            self._loss_window = max(self._loss_window * LOSS_REDUCTION, self._minimum)
            self._fair_window = 0.0
            self._loss_at = now

    def on_persistent_loss(self) -> None:
        """Fall back to the smallest window: nothing came back for several probes."""
        self._window = self._minimum
        self._stop_competing()

    # The model

    @property
    def _minimum(self) -> float:
        return float(MINIMUM_WINDOW_PACKETS * self.packet_size)

    @property
    def _path_size(self) -> float:
        """Bytes that the path holds without a queue, or nearly so."""
        return self.bandwidth * (self.min_rtt + EMPTY_FLOOR / 2)

    @property
    def _working_size(self) -> float:
        """Bytes in flight that keep the path full, acknowledgements a round trip late included."""
        clumps = max(self._surplus, self._old_surplus)
        return self.bandwidth * (WINDOW_GAIN * self.min_rtt + QUEUE_FLOOR) + clumps

    @property
    def _shared_size(self) -> float:
        """Bytes in flight that use this sender's share of a path, and add no queue to others'."""
        clumps = max(self._surplus, self._old_surplus)
        allowance = float(WINDOW_ALLOWANCE_PACKETS * self.packet_size)
        return self.bandwidth * (self.min_rtt + QUEUE_FLOOR) + clumps + allowance

    @property
    def _overflows(self) -> bool:
        sent = self._round_delivered + self._round_lost
        is_more_than_chance = self._round_lost >= STARTUP_LOSS_PACKETS * self.packet_size
        return is_more_than_chance and self._round_lost > STARTUP_LOSS * sent

    @property
    def _is_draining(self) -> bool:
        is_drain_phase = self.mode == CRUISE and CYCLE_GAINS[self._cycle_phase] < 1.0
        return self.mode == DRAIN or (is_drain_phase and self._is_drain_cycle)

    @property
    def _is_drain_cycle(self) -> bool:
        return not self.is_competing or self._cycle % COMPETING_DRAIN_CYCLES == 0

    def _is_empty_queue(self, rtt: float) -> bool:
        return rtt <= EMPTY_QUEUE_FACTOR * self.min_rtt + EMPTY_FLOOR

    @property
    def _is_filled_for_long(self) -> bool:
        """Unlike a few samples that are late, as those of a busy machine are."""
        is_empty = self._is_empty_queue(self._epoch_rtt) or self._is_empty_queue(
            self._old_epoch_rtt
        )
        return not is_empty

    def _on_rtt(self, rtt: float, flight_before: int, now: float) -> None:
        self._latest_rtt = rtt
        if self._epoch_rtt == 0.0 or rtt < self._epoch_rtt:
            self._epoch_rtt = rtt
        if self._cycle_min_rtt == 0.0 or rtt < self._cycle_min_rtt:
            self._cycle_min_rtt = rtt
        is_old = now - self._min_rtt_at > MIN_RTT_LIFETIME
        is_lightly_loaded = flight_before <= PROBE_RTT_GAIN * self._path_size
        if self.min_rtt == 0.0 or rtt <= self.min_rtt or (is_old and is_lightly_loaded):
            self.min_rtt = rtt
            self._min_rtt_at = now
        elif is_old and self.mode == CRUISE:
            self.mode = PROBE_RTT
            self._probe_rtt_ends_at = now + PROBE_RTT_TIME + self.min_rtt
            self._old_min_rtt = self.min_rtt
            self.min_rtt = rtt

    def _begin_round(self, sent_at: float, now: float) -> None:
        self._round_at = now
        self._round_sent_at = sent_at
        self._round_delivered = 0
        self._round_lost = 0
        self._is_app_limited = False

    def _end_round(self, newest_sent_at: float, now: float) -> None:
        seconds = max(now - self._round_at, newest_sent_at - self._round_sent_at)
        if seconds > 0.0:
            self._add_rate(self._round_delivered / seconds, now)
        self._begin_round(newest_sent_at, now)

    def _add_rate(self, rate: float, now: float) -> None:
        if self._is_app_limited and rate <= self.bandwidth:
            return
        if now - self._epoch_at >= EPOCH_FLOOR:
            self._begin_epoch(now)
        slot = self._epoch % BANDWIDTH_EPOCHS
        self._rates[slot] = max(rate, self._rates[slot])
        self.bandwidth = max(self._rates)
        if self.mode != STARTUP:
            return
        if self.bandwidth >= GROWTH * self._full_rate:
            self._full_rate = self.bandwidth
            self._full_rate_at = now
            self._flat_rounds = 0
            return
        self._flat_rounds += 1
        if (
            self._flat_rounds >= FLAT_ROUNDS
            and now - self._full_rate_at >= FLAT_ROUNDS * ROUND_FLOOR
        ):
            self.mode = DRAIN

    def _begin_epoch(self, now: float) -> None:
        self._epoch += 1
        self._epoch_at = now
        self._old_epoch_rtt = self._epoch_rtt
        self._epoch_rtt = 0.0
        self._rates[self._epoch % BANDWIDTH_EPOCHS] = 0.0
        if self._epoch % SURPLUS_EPOCHS == 0:
            self._old_surplus = self._surplus
            self._surplus = 0.0

    def _measure_clump(self, acked: int, now: float) -> None:
        """By how much acknowledgements run ahead of the bandwidth, when they come all at once."""
        expected = self.bandwidth * (now - self._clump_at)
        if self._clump_acked <= expected:
            self._clump_at = now
            self._clump_acked = 0
            expected = 0.0
        self._clump_acked += acked
        surplus = min(self._clump_acked - expected, SURPLUS_LIMIT * self.bandwidth)
        self._surplus = max(self._surplus, surplus)

    def _end_cycle(self, now: float) -> None:
        """Count the cycles in a row that speak for the other way of sharing the queue."""
        is_empty = self._is_empty_queue(self._cycle_min_rtt)
        self._odd_cycles = self._odd_cycles + 1 if is_empty == self.is_competing else 0
        if self._odd_cycles == 1:
            self._odd_window = self._window  # before the other sender's packets made it shrink
        if self._odd_cycles >= COMPETING_CYCLES:
            self._stop_competing()
            if not is_empty:
                self._loss_window = max(self._odd_window, self._minimum)
                self._loss_maximum = self._loss_window
                self._loss_at = now
        if self._loss_window > 0.0 and not is_empty and self._loss_window < self._path_size:
            # It gave way to below the path and the queue stayed: is that the path's round trip?
            self._min_rtt_at = min(self._min_rtt_at, now - MIN_RTT_LIFETIME)
        if self._loss_window > 0.0 and not self._is_empty_queue(self._drain_rtt):
            self._balance(now)

    def _balance(self, now: float) -> None:
        """Aim at half of the queue: this sender's share is what its drain took away of it."""
        queue = self._drain_rtt - self.min_rtt
        if queue <= 0.0:
            return
        share = max((self._drain_rtt - self._cycle_min_rtt) / queue, FAIR_SHARE / FAIR_GROWTH)
        if share < FAIR_SHARE:
            self._fair_window = FAIR_SHARE / share * self._loss_window
            return
        self._fair_window = 0.0
        reduced = self._loss_window * max(FAIR_SHARE / share, LOSS_REDUCTION)
        self._loss_window = max(reduced, self._minimum)
        self._loss_maximum = self._loss_window
        self._loss_at = now

    def _stop_competing(self) -> None:
        self._loss_window = 0.0
        self._fair_window = 0.0
        self._odd_cycles = 0

    def _advance_mode(self, bytes_in_flight: int, now: float) -> None:
        if self.mode == DRAIN and bytes_in_flight <= max(self._path_size, self._minimum):
            self.mode = CRUISE
            self._cycle_at = now
        elif self.mode == PROBE_RTT and now >= self._probe_rtt_ends_at:
            if self.min_rtt <= EMPTY_QUEUE_FACTOR * self._old_min_rtt + EMPTY_FLOOR:
                self._stop_competing()  # the queue was this sender's own
            self.mode = CRUISE
            self._min_rtt_at = now
            self._cycle_at = now
        elif self.mode == CRUISE:
            length = max(self.min_rtt, ROUND_FLOOR)
            if self._is_draining and self.is_competing:
                length = max(length, self._drain_rtt)
            is_over = now - self._cycle_at >= length
            if is_over or (self._is_draining and bytes_in_flight <= self._path_size):
                self._begin_phase(now)

    def _begin_phase(self, now: float) -> None:
        self._cycle_phase = (self._cycle_phase + 1) % len(CYCLE_GAINS)
        self._cycle_at = now
        if self._is_draining:
            self._drain_rtt = self._latest_rtt
        if self._cycle_phase != 0:
            return
        self._cycle += 1
        if not self._is_drain_cycle:
            return
        if self._cycle_min_rtt > 0.0:
            self._end_cycle(now)
        self._cycle_min_rtt = 0.0

    def _update_window(self, acked: int, flight_before: int) -> None:
        allowance = float(WINDOW_ALLOWANCE_PACKETS * self.packet_size)
        if self.mode == STARTUP:
            limit = self.bandwidth * (STARTUP_GAIN * self.min_rtt + QUEUE_FLOOR) + allowance
            if flight_before >= self._window / 2 and (
                self.bandwidth == 0.0 or self._window < limit
            ):
                self._window += acked
            return
        target = self._working_size + allowance
        if self.mode == PROBE_RTT:
            target = PROBE_RTT_GAIN * self._path_size
        self._window = max(min(self._window + acked, target), self._minimum)

    def _grow_loss_window(self, acked: int, now: float) -> None:
        if self._loss_window < self._fair_window:
            self._loss_window += acked / FAIR_DIVISOR
            return
        packet = float(self.packet_size)
        self._loss_window += FRIENDLY_GROWTH * packet * acked / self._loss_window
        maximum = self._loss_maximum / packet
        plateau = (maximum * (1.0 - LOSS_REDUCTION) / CUBIC_C) ** (1.0 / 3.0)
        elapsed = now - self._loss_at - plateau
        cubic = packet * (CUBIC_C * elapsed * elapsed * elapsed + maximum)
        limit = self._loss_window + acked / 2.0
        self._loss_window = max(self._loss_window, min(cubic, limit))
