# Window and pacing rate of one path: the compiled half of _fastpath_py/congestion.py, where the model
# and the constants are explained. The arithmetic keeps its order: both give the same doubles.

cdef enum:
    C_INITIAL_WINDOW_PACKETS = 10
    C_MINIMUM_WINDOW_PACKETS = 4
    C_CYCLE_PHASES = 8
    C_FIRST_CRUISE_PHASE = 2
    C_CRUISE_PHASES = 6
    C_WINDOW_ALLOWANCE_PACKETS = 10
    C_BANDWIDTH_EPOCHS = 10
    C_SURPLUS_EPOCHS = 5
    C_FLAT_ROUNDS = 3
    C_STARTUP_LOSS_PACKETS = 8
    C_COMPETING_DRAIN_CYCLES = 4
    C_COMPETING_CYCLES = 2

    MODE_STARTUP = 0
    MODE_DRAIN = 1
    MODE_CRUISE = 2
    MODE_PROBE_RTT = 3

cdef double C_STARTUP_GAIN = 2.885
cdef double C_PACING_GAIN_STARTUP = 2.0
cdef double C_WINDOW_GAIN = 2.0
cdef double C_ROUND_FLOOR = 0.01
cdef double C_EPOCH_FLOOR = 0.05
cdef double C_SURPLUS_LIMIT = 0.001
cdef double C_QUEUE_FLOOR = 0.001
cdef double C_EMPTY_FLOOR = 0.0015
cdef double C_GROWTH = 1.25
cdef double C_STARTUP_LOSS = 0.2
cdef double C_MIN_RTT_LIFETIME = 10.0
cdef double C_PROBE_RTT_TIME = 0.2
cdef double C_PROBE_RTT_GAIN = 0.5
cdef double C_EMPTY_QUEUE_FACTOR = 1.25
cdef double C_LOSS_REDUCTION = 0.7
cdef double C_CUBIC_C = 0.4
cdef double C_FRIENDLY_GROWTH = 0.53
cdef double C_COMPETING_PACING_GAIN = 1.25
cdef double C_FAIR_SHARE = 0.5
cdef double C_FAIR_GROWTH = 2.0
cdef double C_FAIR_DIVISOR = 4.0

cdef struct Congestion:
    uint32_t packet_size
    int mode
    double bandwidth
    double min_rtt
    double window
    double rates[C_BANDWIDTH_EPOCHS]
    uint64_t epoch
    double epoch_at
    double surplus
    double old_surplus
    double clump_at
    int64_t clump_acked
    double sack_at
    double round_at
    double round_sent_at
    int64_t round_delivered
    int64_t round_lost
    double cycle_min_rtt
    bint is_app_limited
    double full_rate
    double full_rate_at
    uint32_t flat_rounds
    uint32_t cycle_phase
    double cycle_at
    double min_rtt_at
    double probe_rtt_ends_at
    uint32_t cycle
    uint32_t odd_cycles
    double odd_window
    double old_min_rtt
    double loss_window
    double loss_maximum, loss_at
    double fair_window, latest_rtt, drain_rtt, epoch_rtt, old_epoch_rtt


cdef inline double larger(double a, double b) noexcept nogil:
    return b if b > a else a


cdef inline double smaller(double a, double b) noexcept nogil:
    return b if b < a else a


cdef inline void congestion_init(
    Congestion* state, uint32_t packet_size, uint32_t phase
) noexcept nogil:
    memset(state, 0, sizeof(Congestion))
    state.packet_size = packet_size
    state.sack_at = -1.0
    state.window = <double>C_INITIAL_WINDOW_PACKETS * packet_size
    state.cycle_phase = C_FIRST_CRUISE_PHASE + phase % C_CRUISE_PHASES


cdef inline double congestion_minimum(const Congestion* state) noexcept nogil:
    return <double>C_MINIMUM_WINDOW_PACKETS * state.packet_size


cdef inline int64_t congestion_underway(const Congestion* state) noexcept nogil:
    return <int64_t>(state.bandwidth * state.min_rtt)


cdef inline double congestion_path_size(const Congestion* state) noexcept nogil:
    return state.bandwidth * (state.min_rtt + C_EMPTY_FLOOR / 2)


cdef inline bint congestion_is_filled_for_long(const Congestion* state) noexcept nogil:
    return not (
        congestion_is_empty_queue(state, state.epoch_rtt)
        or congestion_is_empty_queue(state, state.old_epoch_rtt)
    )


cdef inline bint congestion_is_empty_queue(const Congestion* state, double rtt) noexcept nogil:
    return rtt <= C_EMPTY_QUEUE_FACTOR * state.min_rtt + C_EMPTY_FLOOR


cdef inline double congestion_cycle_gain(const Congestion* state) noexcept nogil:
    if state.cycle_phase == 0:
        return 1.25
    return 0.75 if state.cycle_phase == 1 else 1.0


cdef inline bint congestion_is_drain_cycle(const Congestion* state) noexcept nogil:
    return state.loss_window == 0.0 or state.cycle % C_COMPETING_DRAIN_CYCLES == 0


cdef inline bint congestion_is_draining(const Congestion* state) noexcept nogil:
    if state.mode == MODE_DRAIN:
        return True
    return (
        state.mode == MODE_CRUISE and congestion_cycle_gain(state) < 1.0
        and congestion_is_drain_cycle(state)
    )


cdef inline double congestion_shared_size(const Congestion* state) noexcept nogil:
    return state.bandwidth * (state.min_rtt + C_QUEUE_FLOOR) + larger(
        state.surplus, state.old_surplus
    ) + <double>C_WINDOW_ALLOWANCE_PACKETS * state.packet_size


cdef inline int64_t congestion_window(const Congestion* state) noexcept nogil:
    cdef double window
    if state.mode == MODE_PROBE_RTT:
        return <int64_t>state.window
    window = state.window
    if state.loss_window > 0.0:
        window = larger(congestion_shared_size(state), state.loss_window)
    if congestion_is_draining(state):
        window = smaller(window, larger(congestion_path_size(state), congestion_minimum(state)))
    return <int64_t>window


cdef inline double congestion_pacing_rate(const Congestion* state, double smoothed_rtt) noexcept nogil:
    cdef double gain = 1.0
    cdef double rate
    if state.mode == MODE_STARTUP or state.bandwidth == 0.0:
        return C_PACING_GAIN_STARTUP * <double>congestion_window(state) / smoothed_rtt
    if state.mode == MODE_DRAIN:
        gain = 1.0 / C_STARTUP_GAIN
    elif state.mode == MODE_CRUISE:
        gain = congestion_cycle_gain(state)
    rate = larger(gain * state.bandwidth, congestion_minimum(state) / smoothed_rtt)
    if (
        state.loss_window > 0.0 and state.mode != MODE_PROBE_RTT
        and not congestion_is_draining(state)
    ):
        rate = larger(rate, C_COMPETING_PACING_GAIN * state.loss_window / smoothed_rtt)
    return rate


cdef inline void congestion_set_packet_size(Congestion* state, uint32_t packet_size) noexcept nogil:
    state.packet_size = packet_size
    state.window = larger(state.window, congestion_minimum(state))


cdef inline void congestion_stop_competing(Congestion* state) noexcept nogil:
    state.loss_window = 0.0
    state.fair_window = 0.0
    state.odd_cycles = 0


cdef inline void congestion_begin_round(Congestion* state, double sent_at, double now) noexcept nogil:
    state.round_at = now
    state.round_sent_at = sent_at
    state.round_delivered = 0
    state.round_lost = 0
    state.is_app_limited = False


cdef inline void congestion_on_restart(Congestion* state, double now) noexcept nogil:
    if now - state.sack_at > C_ROUND_FLOOR:
        congestion_begin_round(state, now, now)
        state.cycle_at = now


cdef inline void congestion_on_rtt(
    Congestion* state, double rtt, int64_t flight_before, double now
) noexcept nogil:
    cdef bint is_old = now - state.min_rtt_at > C_MIN_RTT_LIFETIME
    cdef bint is_lightly_loaded = (
        <double>flight_before <= C_PROBE_RTT_GAIN * congestion_path_size(state)
    )
    state.latest_rtt = rtt
    if state.epoch_rtt == 0.0 or rtt < state.epoch_rtt:
        state.epoch_rtt = rtt
    if state.cycle_min_rtt == 0.0 or rtt < state.cycle_min_rtt:
        state.cycle_min_rtt = rtt
    if state.min_rtt == 0.0 or rtt <= state.min_rtt or (is_old and is_lightly_loaded):
        state.min_rtt = rtt
        state.min_rtt_at = now
    elif is_old and state.mode == MODE_CRUISE:
        state.mode = MODE_PROBE_RTT
        state.probe_rtt_ends_at = now + C_PROBE_RTT_TIME + state.min_rtt
        state.old_min_rtt = state.min_rtt
        state.min_rtt = rtt


cdef inline void congestion_begin_epoch(Congestion* state, double now) noexcept nogil:
    state.epoch += 1
    state.epoch_at = now
    state.old_epoch_rtt = state.epoch_rtt
    state.epoch_rtt = 0.0
    state.rates[state.epoch % C_BANDWIDTH_EPOCHS] = 0.0
    if state.epoch % C_SURPLUS_EPOCHS == 0:
        state.old_surplus = state.surplus
        state.surplus = 0.0


cdef inline void congestion_measure_clump(Congestion* state, int64_t acked, double now) noexcept nogil:
    cdef double expected = state.bandwidth * (now - state.clump_at)
    if <double>state.clump_acked <= expected:
        state.clump_at = now
        state.clump_acked = 0
        expected = 0.0
    state.clump_acked += acked
    state.surplus = larger(
        state.surplus,
        smaller(<double>state.clump_acked - expected, C_SURPLUS_LIMIT * state.bandwidth),
    )


cdef inline void congestion_add_rate(Congestion* state, double rate, double now) noexcept nogil:
    cdef int number
    if state.is_app_limited and rate <= state.bandwidth:
        return
    if now - state.epoch_at >= C_EPOCH_FLOOR:
        congestion_begin_epoch(state, now)
    number = <int>(state.epoch % C_BANDWIDTH_EPOCHS)
    state.rates[number] = larger(rate, state.rates[number])
    state.bandwidth = state.rates[0]
    for number in range(1, C_BANDWIDTH_EPOCHS):
        state.bandwidth = larger(state.bandwidth, state.rates[number])
    if state.mode != MODE_STARTUP:
        return
    if state.bandwidth >= C_GROWTH * state.full_rate:
        state.full_rate = state.bandwidth
        state.full_rate_at = now
        state.flat_rounds = 0
        return
    state.flat_rounds += 1
    if (
        state.flat_rounds >= C_FLAT_ROUNDS
        and now - state.full_rate_at >= C_FLAT_ROUNDS * C_ROUND_FLOOR
    ):
        state.mode = MODE_DRAIN


cdef inline void congestion_balance(Congestion* state, double now) noexcept nogil:
    cdef double queue = state.drain_rtt - state.min_rtt
    cdef double share
    if queue <= 0.0:
        return
    share = larger((state.drain_rtt - state.cycle_min_rtt) / queue, C_FAIR_SHARE / C_FAIR_GROWTH)
    if share < C_FAIR_SHARE:
        state.fair_window = C_FAIR_SHARE / share * state.loss_window
        return
    state.fair_window = 0.0
    state.loss_window = larger(
        state.loss_window * larger(C_FAIR_SHARE / share, C_LOSS_REDUCTION), congestion_minimum(state)
    )
    state.loss_maximum = state.loss_window
    state.loss_at = now


cdef inline void congestion_end_cycle(Congestion* state, double now) noexcept nogil:
    cdef bint is_empty = congestion_is_empty_queue(state, state.cycle_min_rtt)
    state.odd_cycles = state.odd_cycles + 1 if is_empty == (state.loss_window > 0.0) else 0
    if state.odd_cycles == 1:
        state.odd_window = state.window
    if state.odd_cycles >= C_COMPETING_CYCLES:
        congestion_stop_competing(state)
        if not is_empty:
            state.loss_window = larger(state.odd_window, congestion_minimum(state))
            state.loss_maximum = state.loss_window
            state.loss_at = now
    if (
        state.loss_window > 0.0 and not is_empty
        and state.loss_window < congestion_path_size(state)
    ):
        state.min_rtt_at = smaller(state.min_rtt_at, now - C_MIN_RTT_LIFETIME)
    if state.loss_window > 0.0 and not congestion_is_empty_queue(state, state.drain_rtt):
        congestion_balance(state, now)


cdef inline void congestion_begin_phase(Congestion* state, double now) noexcept nogil:
    state.cycle_phase = (state.cycle_phase + 1) % C_CYCLE_PHASES
    state.cycle_at = now
    if congestion_is_draining(state):
        state.drain_rtt = state.latest_rtt
    if state.cycle_phase != 0:
        return
    state.cycle += 1
    if not congestion_is_drain_cycle(state):
        return
    if state.cycle_min_rtt > 0.0:
        congestion_end_cycle(state, now)
    state.cycle_min_rtt = 0.0


cdef inline void congestion_end_round(
    Congestion* state, double newest_sent_at, double now
) noexcept nogil:
    cdef double seconds = larger(now - state.round_at, newest_sent_at - state.round_sent_at)
    if seconds > 0.0:
        congestion_add_rate(state, <double>state.round_delivered / seconds, now)
    congestion_begin_round(state, newest_sent_at, now)


cdef inline void congestion_advance_mode(
    Congestion* state, int64_t bytes_in_flight, double now
) noexcept nogil:
    cdef double length
    cdef bint has_drained = <double>bytes_in_flight <= congestion_path_size(state)
    if state.mode == MODE_DRAIN and (
        has_drained or <double>bytes_in_flight <= congestion_minimum(state)
    ):
        state.mode = MODE_CRUISE
        state.cycle_at = now
    elif state.mode == MODE_PROBE_RTT and now >= state.probe_rtt_ends_at:
        if state.min_rtt <= C_EMPTY_QUEUE_FACTOR * state.old_min_rtt + C_EMPTY_FLOOR:
            congestion_stop_competing(state)
        state.mode = MODE_CRUISE
        state.min_rtt_at = now
        state.cycle_at = now
    elif state.mode == MODE_CRUISE:
        length = larger(state.min_rtt, C_ROUND_FLOOR)
        if congestion_is_draining(state) and state.loss_window > 0.0:
            length = larger(length, state.drain_rtt)
        if now - state.cycle_at >= length or (congestion_is_draining(state) and has_drained):
            congestion_begin_phase(state, now)


cdef inline void congestion_update_window(
    Congestion* state, int64_t acked, int64_t flight_before
) noexcept nogil:
    cdef double allowance = <double>C_WINDOW_ALLOWANCE_PACKETS * state.packet_size
    cdef double target
    if state.mode == MODE_STARTUP:
        target = (
            state.bandwidth * (C_STARTUP_GAIN * state.min_rtt + C_QUEUE_FLOOR) + allowance
        )
        if <double>flight_before >= state.window / 2 and (
            state.bandwidth == 0.0 or state.window < target
        ):
            state.window += acked
        return
    target = state.bandwidth * (C_WINDOW_GAIN * state.min_rtt + C_QUEUE_FLOOR) + larger(
        state.surplus, state.old_surplus
    ) + allowance
    if state.mode == MODE_PROBE_RTT:
        target = C_PROBE_RTT_GAIN * congestion_path_size(state)
    state.window = larger(smaller(state.window + acked, target), congestion_minimum(state))


cdef inline void congestion_grow_loss_window(Congestion* state, int64_t acked, double now) noexcept nogil:
    cdef double packet = <double>state.packet_size
    cdef double maximum, plateau, elapsed, cubic, limit
    if state.loss_window < state.fair_window:
        state.loss_window += <double>acked / C_FAIR_DIVISOR
        return
    state.loss_window += C_FRIENDLY_GROWTH * packet * acked / state.loss_window
    maximum = state.loss_maximum / packet
    plateau = pow(maximum * (1.0 - C_LOSS_REDUCTION) / C_CUBIC_C, 1.0 / 3.0)
    elapsed = now - state.loss_at - plateau
    cubic = packet * (C_CUBIC_C * elapsed * elapsed * elapsed + maximum)
    limit = state.loss_window + <double>acked / 2.0
    state.loss_window = larger(state.loss_window, smaller(cubic, limit))


cdef inline void congestion_on_sack(
    Congestion* state, int64_t acked, double newest_sent_at, double rtt, int64_t bytes_in_flight,
    double now
) noexcept nogil:
    cdef double floor = 0.0 if state.mode == MODE_STARTUP else C_ROUND_FLOOR
    if acked == 0:
        return
    state.sack_at = now
    state.round_delivered += acked
    if rtt > 0.0:
        congestion_on_rtt(state, rtt, bytes_in_flight + acked, now)
    if newest_sent_at >= state.round_at and now - state.round_at >= floor:
        congestion_end_round(state, newest_sent_at, now)
    congestion_measure_clump(state, acked, now)
    congestion_advance_mode(state, bytes_in_flight, now)
    congestion_update_window(state, acked, bytes_in_flight + acked)
    if state.loss_window > 0.0 and <double>(bytes_in_flight + acked) >= state.loss_window / 2:
        congestion_grow_loss_window(state, acked, now)


cdef inline bint congestion_overflows(const Congestion* state) noexcept nogil:
    cdef int64_t sent = state.round_delivered + state.round_lost
    return (
        state.round_lost >= <int64_t>C_STARTUP_LOSS_PACKETS * state.packet_size
        and <double>state.round_lost > C_STARTUP_LOSS * <double>sent
    )


cdef inline void congestion_on_lost(
    Congestion* state, int64_t lost, double newest_sent_at, double rtt, double now
) noexcept nogil:
    state.round_lost += lost
    if state.mode == MODE_STARTUP and congestion_overflows(state):
        state.mode = MODE_DRAIN
    if not congestion_is_empty_queue(state, rtt):
        state.surplus = 0.0
        state.old_surplus = 0.0
        if state.mode == MODE_STARTUP:
            state.mode = MODE_DRAIN
        if (
            state.mode == MODE_CRUISE and state.loss_window == 0.0
            and congestion_is_filled_for_long(state)
        ):
            congestion_stop_competing(state)
            state.loss_window = larger(
                smaller(state.window, state.bandwidth * rtt), congestion_minimum(state)
            )
            state.loss_at = 0.0
    if state.loss_window > 0.0 and newest_sent_at > state.loss_at:
        state.loss_maximum = state.loss_window
        state.loss_window = larger(
            state.loss_window * C_LOSS_REDUCTION, congestion_minimum(state)
        )
        state.fair_window = 0.0
        state.loss_at = now


cdef inline void congestion_on_persistent_loss(Congestion* state) noexcept nogil:
    state.window = congestion_minimum(state)
    congestion_stop_competing(state)
