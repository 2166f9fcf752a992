# Round-trip time and pacing: the compiled half of _fastpath_py/path.py, where the
# formulas and constants are explained. The arithmetic keeps its order: both give the same doubles.

cdef enum:
    C_PACING_BURST_PACKETS = 10

cdef double C_INITIAL_RTT = 0.1
cdef double C_GRANULARITY = 0.001
cdef double C_REORDERING_SHARE = 0.25
cdef double C_REORDERING_LIMIT = 8.0
cdef double C_PACING_BURST_TIME = 0.002

cdef struct Rtt:
    double latest
    double smoothed
    double variance
    double minimum

cdef struct PacerState:
    uint32_t packet_size
    double rate
    double tokens
    double updated_at


cdef inline void rtt_init(Rtt* rtt) noexcept nogil:
    rtt.latest = 0.0
    rtt.smoothed = C_INITIAL_RTT
    rtt.variance = C_INITIAL_RTT / 2
    rtt.minimum = 0.0


cdef inline double rtt_retransmit_timeout(const Rtt* rtt) noexcept nogil:
    return rtt.smoothed + larger(4.0 * rtt.variance, C_GRANULARITY)


cdef inline double rtt_loss_delay(const Rtt* rtt, double reordering) noexcept nogil:
    cdef double allowance = larger(
        smaller(reordering, C_REORDERING_LIMIT * rtt.smoothed), C_GRANULARITY
    )
    allowance = larger(C_REORDERING_SHARE * rtt.minimum, allowance)
    return larger(rtt.smoothed, rtt.latest) + allowance


cdef void rtt_on_sample(Rtt* rtt, double sample, double ack_delay) noexcept nogil:
    cdef bint first = rtt.latest == 0.0
    sample = larger(sample, 1e-6)
    rtt.minimum = sample if first else smaller(rtt.minimum, sample)
    if sample - ack_delay >= rtt.minimum:
        sample = sample - ack_delay
    rtt.latest = sample
    if first:
        rtt.smoothed = sample
        rtt.variance = sample / 2
        return
    rtt.variance = 0.75 * rtt.variance + 0.25 * fabs(rtt.smoothed - sample)
    rtt.smoothed = 0.875 * rtt.smoothed + 0.125 * sample


cdef inline void pacer_init(PacerState* state, uint32_t packet_size) noexcept nogil:
    state.packet_size = packet_size
    state.rate = 0.0
    state.tokens = 0.0
    state.updated_at = 0.0


cdef inline void pacer_refill(PacerState* state, double now, double rate) noexcept nogil:
    cdef double burst = larger(
        <double>C_PACING_BURST_PACKETS * state.packet_size, rate * C_PACING_BURST_TIME
    )
    if state.rate == 0.0:
        state.tokens = burst
    else:
        state.tokens = smaller(burst, state.tokens + (now - state.updated_at) * rate)
    state.rate = rate
    state.updated_at = now


cdef inline double pacer_ready_at(const PacerState* state) noexcept nogil:
    if state.rate == 0.0 or state.tokens >= <double>state.packet_size - 1.0:
        return 0.0
    return state.updated_at + (<double>state.packet_size - state.tokens) / state.rate


cdef class RttEstimator:
    cdef Rtt rtt

    def __cinit__(self):
        rtt_init(&self.rtt)

    @property
    def has_sample(self):
        return self.rtt.latest > 0.0

    @property
    def latest(self):
        return self.rtt.latest

    @property
    def smoothed(self):
        return self.rtt.smoothed

    @property
    def variance(self):
        return self.rtt.variance

    @property
    def minimum(self):
        return self.rtt.minimum

    @property
    def retransmit_timeout(self):
        return rtt_retransmit_timeout(&self.rtt)

    def loss_delay(self, double reordering):
        return rtt_loss_delay(&self.rtt, reordering)

    def on_sample(self, double sample, double ack_delay=0.0):
        rtt_on_sample(&self.rtt, sample, ack_delay)


cdef class Pacer:
    cdef PacerState state

    def __cinit__(self, uint32_t packet_size):
        pacer_init(&self.state, packet_size)

    @property
    def packet_size(self):
        return self.state.packet_size

    @packet_size.setter
    def packet_size(self, uint32_t packet_size):
        self.state.packet_size = packet_size

    def refill(self, double now, double rate):
        pacer_refill(&self.state, now, rate)

    @property
    def ready_at(self):
        return pacer_ready_at(&self.state)

    def on_packet_sent(self, int64_t size):
        self.state.tokens -= size
